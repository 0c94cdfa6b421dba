"""Settings are held to the choices that their types name."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from hf_select.validation import check_choices


@dataclass
class Settings:
    mode: Literal["a", "b"] = "a"
    kind: Literal["x", "y"] | None = None
    free: Any = "anything"
    number: int | None = None


def test_choices_and_none_where_the_type_allows_it():
    check_choices(Settings())
    check_choices(Settings(mode="b", kind="y", free=3, number=4))
    for wrong, message in (
        ({"mode": "c"}, 'mode is "c"; it can be a, b.'),
        ({"kind": "z"}, 'kind is "z"; it can be x, y.'),
    ):
        with pytest.raises(ValueError, match=message):
            check_choices(Settings(**wrong))
    with pytest.raises(ValueError, match="mode"):
        check_choices(Settings(mode=None))  # pyright: ignore[reportArgumentType]


def test_every_kind_of_settings_is_held_to_them():
    from hf_select import CausalLM, Length, RDSPlus, RoundRobin, SelectIT, TopK
    from hf_select.features.hidden_states import HiddenStates

    for make in (
        lambda: CausalLM("m", quantization="3bit"),
        lambda: Length(of="half"),
        lambda: RDSPlus("m", query_overlap="drop"),
        lambda: RDSPlus("m", scope="none"),
        lambda: HiddenStates("m", pooling="max"),
        lambda: SelectIT("m", rating_position="middle"),
        lambda: TopK("score_x", which="top"),
        lambda: RoundRobin(["score_x"], mode="max"),
    ):
        with pytest.raises(ValueError, match="it can be"):
            make()
