"""The places that the exported folder goes to besides the run's own artifact: storage, Hub, Model Registry."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.serving.merge_export import publish, registry
from llm_finetune.components.serving.merge_export.export import check_export, export
from llm_finetune.components.serving.merge_export.settings import Settings
from llm_finetune.components.shared.engine.storage_uris import storage_of


@dataclass(frozen=True)
class Destinations:
    """Where a folder goes, each place known to take it.

    Attributes:
        settings: The card's settings.
        uri: The artifact's own URI.
        registry: Client of the Model Registry, if the model is to be registered.
    """

    settings: Settings
    uri: str
    registry: Any = None

    @classmethod
    def checked(cls, settings: Settings, uri: str) -> "Destinations":
        """Refuses a place that can't be written to before the work begins.

        Args:
            settings: The card's settings.
            uri: The artifact's own URI.

        Raises:
            UserError: If a place refuses or holds files of others, or the Model Registry were to be told of a path that
                no server can read.
        """
        if settings.push_to_hub:
            publish.check_hub(settings.hub_repo, settings.export_overwrite)
        if settings.export_uri:
            check_export(settings.export_uri, settings.export_overwrite)
        if not settings.registry_url:
            return cls(settings, uri)
        storage_of(settings.export_uri or uri)
        return cls(settings, uri, registry.connect(settings.registry_url))

    def send(self, folder: Path, content: str, base_name: str, figures: dict[str, Any]) -> dict[str, Any]:
        """Takes the folder everywhere.

        Args:
            folder: The folder.
            content: Its content hash.
            base_name: Name of the base model.
            figures: What the Model Registry is told about it.

        Returns:
            `pushed_to_hub`, `hub_repo`, `hub_commit`, `export_uri` and `registered` of the card's facts.
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
        return {
            "pushed_to_hub": chosen.push_to_hub,
            "hub_repo": chosen.hub_repo if chosen.push_to_hub else "",
            "hub_commit": commit,
            "export_uri": chosen.export_uri,
            "registered": registered,
        }
