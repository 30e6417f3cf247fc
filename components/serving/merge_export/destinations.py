"""Publishes the exported folder: object storage, Hub and Model Registry."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.serving.merge_export import publish, registry
from llm_finetune.components.serving.merge_export.export import check_export, export
from llm_finetune.components.serving.merge_export.settings import Settings
from llm_finetune.components.shared.engine.storage_uris import storage_of


@dataclass(frozen=True)
class Published:
    """Where the model was published.

    Attributes:
        pushed_to_hub: Whether it was pushed to the Hub.
        hub_repo: Repository on the Hub; empty if not pushed.
        hub_commit: URL of the commit; empty if not pushed.
        export_uri: URI of the copy; empty if not copied.
        registered: `name/version` in the Model Registry; empty if not registered.
    """

    pushed_to_hub: bool
    hub_repo: str
    hub_commit: str
    export_uri: str
    registered: str


@dataclass(frozen=True)
class Destinations:
    """Validated destinations of an export.

    Attributes:
        settings: The card's settings.
        uri: URI of the artifact.
        registry: Client of the Model Registry; None if the model is not registered.
    """

    settings: Settings
    uri: str
    registry: Any = None

    @classmethod
    def validated(cls, settings: Settings, uri: str) -> "Destinations":
        """Validates the destinations before the merge.

        Args:
            settings: The card's settings.
            uri: URI of the artifact.

        Raises:
            UserError: If a destination is not writable or has other files, or no server could load the registered URI.
        """
        if settings.push_to_hub:
            publish.check_hub(settings.hub_repo, settings.export_overwrite)
        if settings.export_uri:
            check_export(settings.export_uri, settings.export_overwrite)
        if not settings.registry_url:
            return cls(settings, uri)
        storage_of(settings.export_uri or uri)
        return cls(settings, uri, registry.connect(settings.registry_url))

    def publish(self, folder: Path, content: str, base_name: str, figures: Mapping[str, object]) -> Published:
        """Publishes the folder to all destinations.

        Args:
            folder: The folder.
            content: Its content hash.
            base_name: Name of the base model.
            figures: Metadata of the version in the Model Registry.

        Returns:
            The result.
        """
        chosen, commit, registered = self.settings, "", ""
        if chosen.export_uri:
            export(folder, chosen.export_uri, chosen.export_overwrite)
        if chosen.push_to_hub:
            message = f"Fine-tuned {base_name or 'model'}"
            commit = publish.push(folder, chosen.hub_repo, chosen.private, message, chosen.export_overwrite)
        if self.registry is not None:
            version = content.removeprefix("sha256:")[:12]
            where = storage_of(chosen.export_uri or self.uri).uri
            registered = registry.register(
                self.registry,
                registry.Registration(chosen.registered_model, version, where, self.uri, figures),
            )
        repository = chosen.hub_repo if chosen.push_to_hub else ""
        return Published(chosen.push_to_hub, repository, commit, chosen.export_uri, registered)
