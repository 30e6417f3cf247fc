"""Creates the skeleton of a card: component, settings, step and test (`make card NAME=data/count_words`)."""

import re
import sys
from pathlib import Path

import jinja2

from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.files import write_text
from llm_finetune.pipelines.signatures import ROOT, write_signatures

SKELETON = Path(__file__).with_name("card_skeleton")
NOT_GROUPS = ("shared",)


def new_card(path: str, root: Path = ROOT) -> list[Path]:
    """Creates a card that counts rows, as a starting point.

    Args:
        path: Group and name of the card, such as `data/count_words`.
        root: Root of the repository.

    Returns:
        The written files.

    Raises:
        UserError: If the name is invalid, the group does not exist, or the card exists.
    """
    group, _, name = path.partition("/")
    groups = sorted(
        folder.name
        for folder in (root / "components").iterdir()
        if (folder / "__init__.py").is_file() and folder.name not in NOT_GROUPS
    )
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise UserError(f"NAME={path}: write group and card in lower case, such as NAME=data/count_words")
    if group not in groups:
        raise UserError(f"NAME={path}: unknown group {group!r}{nearest(group, groups)} ({', '.join(groups)})")
    folder = root / "components" / group / name
    if folder.exists():
        raise UserError(f"NAME={path}: {folder.relative_to(root)} exists")
    files = {
        "component.py.jinja": folder / "component.py",
        "settings.py.jinja": folder / "settings.py",
        "step.py.jinja": folder / "step.py",
        "test.py.jinja": root / "tests" / "components" / group / name / f"test_{name}.py",
    }
    loader = jinja2.FileSystemLoader(SKELETON)
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    values = {"group": group, "name": name, "title": name.replace("_", " ").title()}
    write_text(folder / "__init__.py", "")
    for template, file in files.items():
        write_text(file, environment.get_template(template).render(values))
    write_signatures()
    return list(files.values())


if __name__ == "__main__":
    try:
        for file in new_card(sys.argv[1] if len(sys.argv) > 1 else ""):
            print(file.relative_to(ROOT))
    except UserError as error:
        sys.exit(f"error: {error}")
