"""Checks module names against an architecture on the meta device."""

from torch import nn
from transformers import PreTrainedModel

from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.modeling.architecture import LINEAR

ADAPTABLE = (*LINEAR, nn.Embedding)


def check_targets(model: PreTrainedModel, targets: list[str]) -> None:
    """Checks that every target matches modules that LoRA supports.

    Args:
        model: The model; it may be on the meta device.
        targets: Names as PEFT matches them: a module's full name, or its end after a dot.

    Raises:
        UserError: If a target matches no module, an unsupported module, the head, or a tied embedding.
    """
    names = linear_names(model)
    for target in targets:
        found = matching_modules(model, target)
        if not found:
            raise UserError(
                f"target_modules: {target!r} matches no module of {type(model).__name__}"
                f"{nearest(target, names)} (linear modules: {', '.join(names)}; or all-linear)"
            )
        unsupported = next((module for module in found if not isinstance(module, ADAPTABLE)), None)
        if unsupported is not None:
            inside = [name for name, child in unsupported.named_modules() if isinstance(child, LINEAR)]
            raise UserError(
                f"target_modules: {target!r} is a {type(unsupported).__name__}, which LoRA does not support"
                + (f"; the linear modules in it are {', '.join(dict.fromkeys(inside))}" if inside else "")
            )
        if any(module is model.get_output_embeddings() for module in found):
            raise UserError(
                f"target_modules: {target!r} is the head; the trainer's fused loss bypasses an adapter on it. "
                "To train the head, put it into modules_to_save"
            )
        _check_untied(model, found, f"target_modules: {target!r}")


def check_modules_to_save(model: PreTrainedModel, saved: list[str], targets: list[str]) -> None:
    """Checks that every module to train in full exists, is not a target, and does not share its weights.

    Args:
        model: The model; it may be on the meta device.
        saved: Names of the modules to train in full.
        targets: Names of the target modules.

    Raises:
        UserError: If one of these checks fails.
    """
    names = list(
        dict.fromkeys(name.rpartition(".")[2] for name, module in model.named_modules() if _has_own_parameters(module))
    )
    for name in saved:
        found = matching_modules(model, name)
        if not found:
            raise UserError(
                f"modules_to_save: {name!r} matches no module of {type(model).__name__}"
                f"{nearest(name, names)} (modules with weights: {', '.join(names)})"
            )
        if name in targets:
            raise UserError(f"{name!r} is in target_modules and in modules_to_save: keep it in one of them")
        _check_untied(model, found, f"modules_to_save: {name!r}")


def matching_modules(model: nn.Module, name: str) -> list[nn.Module]:
    """Returns the modules that a name matches."""
    return [module for path, module in model.named_modules() if path == name or path.endswith("." + name)]


def linear_names(model: PreTrainedModel) -> list[str]:
    """Returns the last parts of the names of all linear modules except the head, in the model's order."""
    head = model.get_output_embeddings()
    paths = [path for path, module in model.named_modules() if isinstance(module, LINEAR) and module is not head]
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))


def _check_untied(model: PreTrainedModel, found: list[nn.Module], where: str) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return
    if any(module is head or module is embedding for module in found):
        raise UserError(
            f"{where}: embedding and head of {type(model).__name__} are one tensor (tie_word_embeddings), so a trained "
            "copy of one of them would be lost in the merge. Remove it from the setting"
        )


def _has_own_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None
