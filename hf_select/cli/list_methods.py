"""hf-select list"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal

from hf_select.cli.command import Command


if TYPE_CHECKING:
    from hf_select.paper import Paper
    from hf_select.scoring.scorer import Scorer


@dataclass(kw_only=True)
class ListMethods(Command):
    """List the scorers and the selectors: what each does, what it needs, its paper.

    Args:
        kind: what is listed: scorers, selectors or all.
    """

    kind: Literal["all", "scorers", "selectors"] = "all"

    example: ClassVar[str] = "hf-select list"

    @property
    def prints_only(self) -> bool:
        return True

    def run(self) -> None:
        """Print the lists."""
        from hf_select.cli.score import scorer_class
        from hf_select.cli.select import selector_class
        from hf_select.scoring import SCORERS
        from hf_select.selection import SELECTORS

        if self.kind != "selectors":
            scorers = {name: scorer_class(name) for name in sorted(SCORERS)}
            _print_list("Scorers", scorers, {name: _scorer_facts(cls) for name, cls in scorers.items()})
        if self.kind != "scorers":
            selectors = {name: selector_class(name) for name in sorted(SELECTORS)}
            _print_list("Selectors", selectors, {name: _paper_facts(cls.paper) for name, cls in selectors.items()})
        print("\nThe settings of one: hf-select score --scorer NAME --help, hf-select select --selector NAME --help")


def _scorer_facts(cls: "type[Scorer]") -> list[str]:
    """The direction of a scorer, what it needs, and its paper."""
    needs = [field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING]
    needs += (["queries"] if cls.needs_fit else []) + (["the pool"] if cls.needs_pool else [])
    return [
        f"{'higher' if cls.higher_is_better else 'lower'} is better",
        *([f"needs {', '.join(needs)}"] if needs else []),
        *_paper_facts(cls.paper),
    ]


def _paper_facts(paper: "Paper | None") -> list[str]:
    return [] if paper is None else [paper.short()]


def _print_list(title: str, classes: Mapping[str, type], facts: Mapping[str, list[str]]) -> None:
    print(f"\n{title}")
    width = max(map(len, classes))
    for name, cls in classes.items():
        summary = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        print(f"  {name:<{width}}  {summary}")
        if facts[name]:
            print(f"  {'':<{width}}  {'; '.join(facts[name])}")
