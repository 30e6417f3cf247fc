"""Conversations in which every value is a word of its own, so that it can be looked for in rendered text."""

import re
from typing import Any, NamedTuple

from llm_finetune.components.shared.rows.conversations import REASONING
from llm_finetune.components.tokens.tokenize.conversation import Conversation

OFFERED = -1
"""Stands for the tools on offer where a turn is named."""
_WORDS = re.compile(r"<[^<>\n]*>|\[[A-Z_/ ]+\]|\w+")  # tags stay: a template may divide a text at them


class Piece(NamedTuple):
    """A value of a conversation, and the words that stand for it.

    Attributes:
        turn: Index of its message, or `OFFERED`.
        feature: What of a conversation it belongs to, for people.
        place: Where in its message it stands.
        words: The words, in order.
        is_name: Whether it is a function's name, whose word is the same wherever it stands.
    """

    turn: int
    feature: str
    place: str
    words: tuple[str, ...]
    is_name: bool = False


class Marker:
    """Puts words into a conversation. Names of arguments, ids and roles stay, since templates may go by them."""

    def __init__(self, every_word: bool) -> None:
        """Begins with the first word.

        Args:
            every_word: Whether each word of a message is replaced and what divides them stays, or the message as one.
        """
        self.every_word = every_word
        self.count = 0
        self.names: dict[str, str] = {}
        """The word of each function name: tools and calls stay in step."""

    def marked(self, conversation: Conversation) -> tuple[Conversation, list[Piece]]:
        """Returns a conversation of the same form, and its pieces in order."""
        pieces: list[Piece] = []
        tools = [self._tool(tool, i, pieces) for i, tool in enumerate(conversation.tools or [])]
        turns = [self._turn(turn, i, pieces) for i, turn in enumerate(conversation.turns)]
        return Conversation(turns, tools if conversation.tools is not None else None), pieces

    def _turn(self, turn: dict[str, Any], i: int, pieces: list[Piece]) -> dict[str, Any]:
        new = dict(turn)
        for field in ("content", *REASONING):
            if isinstance(text := turn.get(field), str) and text.strip():
                new[field], words = self._text(text)
                pieces.append(Piece(i, _feature(turn, field), field, words))
        if turn.get("name") in self.names:
            new["name"] = self.names[turn["name"]]
        if calls := turn.get("tool_calls"):
            new["tool_calls"] = [self._call(call, i, j, pieces) for j, call in enumerate(calls)]
        return new

    def _call(self, call: dict[str, Any], i: int, j: int, pieces: list[Piece]) -> dict[str, Any]:
        feature = "tool calls" if j == 0 else "the second and further tool calls of an answer"
        place = f"tool_calls[{j}]" + (".function" if "function" in call else "")
        function = dict(function_of(call))
        self._rename(function, Piece(i, feature, f"{place}.name", ()), pieces)
        if "arguments" in function:
            values: list[tuple[str, str]] = []
            function["arguments"] = self._values(function["arguments"], f"{place}.arguments", values)
            pieces += [Piece(i, feature, path, (word,)) for path, word in values]
        return {**call, "function": function} if "function" in call else function

    def _tool(self, tool: dict[str, Any], i: int, pieces: list[Piece]) -> dict[str, Any]:
        place = f"tools[{i}]" + (".function" if "function" in tool else "")
        function = dict(function_of(tool))
        self._rename(function, Piece(OFFERED, "offered tools", f"{place}.name", ()), pieces)
        if isinstance(text := function.get("description"), str) and text.strip():
            function["description"] = self._word()
            pieces.append(Piece(OFFERED, "offered tools", f"{place}.description", (function["description"],)))
        return {**tool, "function": function} if "function" in tool else function

    def _rename(self, function: dict[str, Any], piece: Piece, pieces: list[Piece]) -> None:
        if isinstance(name := function.get("name"), str) and name:
            function["name"] = self.names.setdefault(name, self._word())
            pieces.append(piece._replace(words=(function["name"],), is_name=True))

    def _values(self, value: Any, path: str, found: list[tuple[str, str]]) -> Any:
        """Returns a JSON value with other leaves; true, false, null and empty text stay, as nothing could tell them."""
        if isinstance(value, dict):
            return {name: self._values(part, f"{path}.{name}", found) for name, part in value.items()}
        if isinstance(value, list):
            return [self._values(part, f"{path}[{i}]", found) for i, part in enumerate(value)]
        if isinstance(value, bool) or not value:
            return value
        new: str | int | float = self._word()
        if not isinstance(value, str):
            new = 970_000_000 + self.count if isinstance(value, int) else 970_000_000.5 + self.count
        found.append((path, str(new)))
        return new

    def _text(self, text: str) -> tuple[str, tuple[str, ...]]:
        words: list[str] = []

        def replaced(match: re.Match[str]) -> str:
            if match[0][0] in "<[":
                return match[0]
            words.append(self._word())
            return words[-1]

        if self.every_word and (new := _WORDS.sub(replaced, text)) and words:
            return new, tuple(words)
        word = self._word()
        return word, (word,)

    def _word(self) -> str:
        self.count += 1
        return f"zq{self.count:06}qz"


def function_of(call: dict[str, Any]) -> dict[str, Any]:
    """Returns the function that a call or a tool names; some data has it without the object around."""
    function = call.get("function")
    return function if isinstance(function, dict) else call


def _feature(turn: dict[str, Any], field: str) -> str:
    if field != "content":
        return f"reasoning ({field})"
    if turn["role"] == "assistant":
        return "text beside a tool call" if turn.get("tool_calls") else "answers"
    return {"system": "system messages", "user": "user messages", "tool": "tool results"}.get(
        turn["role"], turn["role"]
    )
