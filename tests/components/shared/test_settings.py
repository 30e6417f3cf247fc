from collections.abc import Mapping
from typing import ClassVar

import pytest
from pydantic import Field

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    renamed: ClassVar[Mapping[str, str]] = {"licence": "license"}
    license: str = Field("", description="License of the data.")
    rows: int = Field(3, ge=1, description="Rows.")


def test_the_old_name_of_a_setting_is_taken_with_a_warning(capsys):
    assert Settings.of({"settings": {"licence": "mit"}}).license == "mit"
    assert (
        capsys.readouterr().out
        == "warning: licence was renamed to license; the next version no longer accepts licence\n"
    )
    assert Settings.of({"license": "", "settings": {"license": "mit"}}).license == "mit"
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="licence is the old name of license: set only license"):
        Settings.of({"settings": {"licence": "mit", "license": "mit"}})


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(
        UserError, match=r"unknown setting 'row'; did you mean 'rows'\? \(known settings: license, rows\)"
    ):
        Settings.of({"settings": {"row": 1}})
