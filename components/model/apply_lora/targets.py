"""Which modules of an architecture an adapter can sit on, looked up on the meta device: no weight is loaded."""

from typing import Any

from torch import nn

from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.modeling.architecture import LINEAR

ADAPTABLE = (*LINEAR, nn.Embedding)


def check_targets(model: Any, targets: list[str]) -> None:
    """Refuses a target module that matches nothing or that LoRA has no layer for.

    Args:
        model: A model, empty or not.
        targets: Names as PEFT matches them: a module's whole name, or the end of it after a dot.
    """
    names = linear_names(model)
    for target in targets:
        found = matches(model, target)
        if not found:
            raise UserError(
                f"target_modules: {target!r} matches no module of {type(model).__name__}"
                f"{nearest(target, names)} (linear modules: {', '.join(names)}; or all-linear)"
            )
        odd = next((module for module in found if not isinstance(module, ADAPTABLE)), None)
        if odd is not None:
            inside = [name for name, child in odd.named_modules() if isinstance(child, LINEAR)]
            raise UserError(
                f"target_modules: {target!r} is a {type(odd).__name__}, which LoRA can't be put on"
                + (f"; the linear modules in it are {', '.join(dict.fromkeys(inside))}" if inside else "")
            )
        if any(module is model.get_output_embeddings() for module in found):
            raise UserError(
                f"target_modules: {target!r} is the head; the trainer's fused loss bypasses an adapter there. "
                "To train the head, name it in modules_to_save"
            )
        _refuse_tied(model, found, f"target_modules: {target!r}")


def check_saved(model: Any, saved: list[str], targets: list[str]) -> None:
    """Refuses a module to train in full that does not exist, is a target as well, or shares its weights."""
    names = list(dict.fromkeys(name.rpartition(".")[2] for name, module in model.named_modules() if _owns(module)))
    for name in saved:
        found = matches(model, name)
        if not found:
            raise UserError(
                f"modules_to_save: {name!r} matches no module of {type(model).__name__}"
                f"{nearest(name, names)} (modules with weights: {', '.join(names)})"
            )
        if name in targets:
            raise UserError(f"{name!r} is in target_modules and in modules_to_save: name it in one of them")
        _refuse_tied(model, found, f"modules_to_save: {name!r}")


def matches(model: Any, name: str) -> list[nn.Module]:
    """Returns the modules that a target name stands for."""
    return [module for path, module in model.named_modules() if path == name or path.endswith("." + name)]


def linear_names(model: Any) -> list[str]:
    """Returns the last parts of the names of all linear modules but the head, in the model's order."""
    head = model.get_output_embeddings()
    paths = [path for path, module in model.named_modules() if isinstance(module, LINEAR) and module is not head]
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))


def _refuse_tied(model: Any, found: list[nn.Module], where: str) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return
    if any(module is head or module is embedding for module in found):
        raise UserError(
            f"{where}: embedding and head of {type(model).__name__} are one tensor here (tie_word_embeddings), and a "
            "trained copy of one of them would be lost in the merge. Leave it out"
        )


def _owns(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None
