"""Replaces every value of a conversation by a unique placeholder, which can be found in the rendered text."""

import re
from typing import Any, NamedTuple

from llm_finetune.components.shared.rows.conversations import REASONING
from llm_finetune.components.tokens.tokenize.conversation import Conversation, JsonObject

TOOL_DEFINITIONS = -1
"""Used as the index of a message for the definitions of tools."""
_WORDS = re.compile(r"<[^<>\n]*>|\[[A-Z_/ ]+\]|\w+")  # tags are kept, because a template may split text at them


class MarkedValue(NamedTuple):
    """A value of a conversation, and the placeholders that replace it.

    Attributes:
        turn: Index of its message, or `TOOL_DEFINITIONS`.
        feature: Part of a conversation that it belongs to, for messages.
        place: Path of the value in its message.
        words: The placeholders, in order.
        is_name: Whether it is a function name, whose placeholder is the same at every place.
    """

    turn: int
    feature: str
    place: str
    words: tuple[str, ...]
    is_name: bool = False


class PlaceholderWriter:
    """Writes placeholders into a conversation.

    Names of arguments, ids and roles are kept, because templates may depend on them.
    """

    def __init__(self, every_word: bool) -> None:
        """Creates a writer.

        Args:
            every_word: Whether each word of a text is replaced, or the text as a whole.
        """
        self.every_word = every_word
        self.count = 0
        self.names: dict[str, str] = {}
        """Placeholder of each function name, the same in tools and calls."""

    def write(self, conversation: Conversation) -> tuple[Conversation, list[MarkedValue]]:
        """Returns a conversation of the same shape with placeholders, and the replaced values in order."""
        values: list[MarkedValue] = []
        tools = [self._tool(tool, i, values) for i, tool in enumerate(conversation.tools or [])]
        turns = [self._turn(turn, i, values) for i, turn in enumerate(conversation.turns)]
        return Conversation(turns, tools if conversation.tools is not None else None), values

    def _turn(self, turn: JsonObject, i: int, values: list[MarkedValue]) -> JsonObject:
        new = dict(turn)
        for field in ("content", *REASONING):
            if isinstance(text := turn.get(field), str) and text.strip():
                new[field], words = self._text(text)
                values.append(MarkedValue(i, _feature(turn, field), field, words))
        if turn.get("name") in self.names:
            new["name"] = self.names[turn["name"]]
        if calls := turn.get("tool_calls"):
            new["tool_calls"] = [self._call(call, i, j, values) for j, call in enumerate(calls)]
        return new

    def _call(self, call: JsonObject, i: int, j: int, values: list[MarkedValue]) -> JsonObject:
        feature = "tool calls" if j == 0 else "the second and further tool calls of an answer"
        place = f"tool_calls[{j}]" + (".function" if "function" in call else "")
        function = dict(function_of(call))
        self._rename(function, MarkedValue(i, feature, f"{place}.name", ()), values)
        if "arguments" in function:
            found: list[tuple[str, str]] = []
            function["arguments"] = self._json(function["arguments"], f"{place}.arguments", found)
            values += [MarkedValue(i, feature, path, (word,)) for path, word in found]
        return {**call, "function": function} if "function" in call else function

    def _tool(self, tool: JsonObject, i: int, values: list[MarkedValue]) -> JsonObject:
        place = f"tools[{i}]" + (".function" if "function" in tool else "")
        function = dict(function_of(tool))
        self._rename(function, MarkedValue(TOOL_DEFINITIONS, "offered tools", f"{place}.name", ()), values)
        if isinstance(text := function.get("description"), str) and text.strip():
            word = function["description"] = self._word()
            values.append(MarkedValue(TOOL_DEFINITIONS, "offered tools", f"{place}.description", (word,)))
        return {**tool, "function": function} if "function" in tool else function

    def _rename(self, function: JsonObject, value: MarkedValue, values: list[MarkedValue]) -> None:
        if isinstance(name := function.get("name"), str) and name:
            function["name"] = self.names.setdefault(name, self._word())
            values.append(value._replace(words=(function["name"],), is_name=True))

    def _json(self, value: Any, path: str, found: list[tuple[str, str]]) -> Any:
        """Returns a JSON value with placeholders as leaves.

        true, false, null and empty text are kept, because they could not be recognized in the text.
        """
        if isinstance(value, dict):
            return {name: self._json(part, f"{path}.{name}", found) for name, part in value.items()}
        if isinstance(value, list):
            return [self._json(part, f"{path}[{i}]", found) for i, part in enumerate(value)]
        if isinstance(value, bool) or not value:
            return value
        new: str | int | float = self._word()
        if not isinstance(value, str):
            new = 970_000_000 + self.count if isinstance(value, int) else 970_000_000.5 + self.count
        found.append((path, str(new)))
        return new

    def _text(self, text: str) -> tuple[str, tuple[str, ...]]:
        words: list[str] = []

        def replace(match: re.Match[str]) -> str:
            if match[0][0] in "<[":
                return match[0]
            words.append(self._word())
            return words[-1]

        if self.every_word and (new := _WORDS.sub(replace, text)) and words:
            return new, tuple(words)
        word = self._word()
        return word, (word,)

    def _word(self) -> str:
        self.count += 1
        return f"zq{self.count:06}qz"


def function_of(call: JsonObject) -> JsonObject:
    """Returns the function of a call or a tool, which in some data is not nested in `function`."""
    function = call.get("function")
    return function if isinstance(function, dict) else call


def _feature(turn: JsonObject, field: str) -> str:
    if field != "content":
        return f"reasoning ({field})"
    role = str(turn["role"])
    if role == "assistant":
        return "text beside a tool call" if turn.get("tool_calls") else "answers"
    return {"system": "system messages", "user": "user messages", "tool": "tool results"}.get(role, role)
