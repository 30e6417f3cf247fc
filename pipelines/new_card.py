"""Writes the skeleton of a new card: face, settings, work and a passing test (`make card NAME=data/count_words`)."""

import re
import sys
from pathlib import Path

import jinja2

from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.files import write_text
from llm_finetune.pipelines.signatures import ROOT, write_signatures

SKELETON = Path(__file__).with_name("card_skeleton")
NOT_WINGS = ("shared",)


def new_card(place: str, root: Path = ROOT) -> list[Path]:
    """Writes a card that counts rows, to be changed into what is wanted.

    Args:
        place: Wing and name of the card, such as `data/count_words`.
        root: The repository.

    Returns:
        The files that were written.

    Raises:
        UserError: If the name is no name of a card, the wing does not exist, or the card does.
    """
    wing, _, name = place.partition("/")
    wings = sorted(
        folder.name
        for folder in (root / "components").iterdir()
        if (folder / "__init__.py").is_file() and folder.name not in NOT_WINGS
    )
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise UserError(f"NAME={place}: write wing and card in lower case, such as NAME=data/count_words")
    if wing not in wings:
        raise UserError(f"NAME={place}: there is no wing {wing!r}{nearest(wing, wings)} ({', '.join(wings)})")
    folder = root / "components" / wing / name
    if folder.exists():
        raise UserError(f"NAME={place}: {folder.relative_to(root)} exists")
    files = {
        "component.py.jinja": folder / "component.py",
        "settings.py.jinja": folder / "settings.py",
        "step.py.jinja": folder / "step.py",
        "test.py.jinja": root / "tests" / "components" / wing / name / f"test_{name}.py",
    }
    loader = jinja2.FileSystemLoader(SKELETON)
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    values = {"wing": wing, "name": name, "title": name.replace("_", " ").title()}
    write_text(folder / "__init__.py", "")
    for template, path in files.items():
        write_text(path, environment.get_template(template).render(values))
    write_signatures()
    return list(files.values())


if __name__ == "__main__":
    try:
        for path in new_card(sys.argv[1] if len(sys.argv) > 1 else ""):
            print(path.relative_to(ROOT))
    except UserError as error:
        sys.exit(f"error: {error}")
