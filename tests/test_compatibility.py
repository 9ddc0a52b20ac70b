"""Every pair of options, and every triple with a method, is a plan or a refusal with an id, as the page says."""

import compatibility
import pytest

from factory.plan import compiler, rules
from factory.plan.rule import rule


def test_each_pair_and_triple_is_legal_or_refused_by_a_rule() -> None:
    """An exception of a rule would end this."""
    assert len(set(compatibility.triples())) == len(list(compatibility.triples())) > 15_000
    given = [*compatibility.pairs(), *compatibility.sampled()]
    refused = {each: rules for each in given if (rules := compatibility.verdict(each))}
    assert 0.05 < len(refused) / len(given) < 0.6


def test_each_option_is_among_the_sampled() -> None:
    given = compatibility.sampled()
    for factor, values in compatibility.FACTORS.items():
        assert {value for triple in given for name, value in triple if name == factor} == set(values)


def test_the_page_is_as_the_rules_are() -> None:
    """Of the triples, the sampled ones."""
    text = compatibility.PAGE.read_text(encoding="utf-8")
    again = "make golden writes it anew: see in `git diff` whether each change is meant"
    told = compatibility.read_together(text)
    assert compatibility.page(told) == text, again
    said = {triple: rules for rules, group in told.items() for triple in group}
    given = compatibility.sampled()
    assert {compatibility.named(each): rules for each in given if (rules := compatibility.new_rules(each))} == {
        name: said[name] for each in given if (name := compatibility.named(each)) in said
    }, again


@pytest.mark.parametrize(
    ("given", "rules"),
    [
        ((("method", "full"), ("quantization", "bitsandbytes 4")), ("quantized-weights",)),
        ((("method", "lora"), ("quantization", "bitsandbytes 4")), ()),
        ((("method", "qlora"), ("quantization", "none")), ()),
        ((("precision", "fp16"), ("device", "cpu")), ("fp16-on-cpu",)),
        ((("precision", "fp32"), ("attention", "flash_attention_2")), ("attention",)),
    ],
)
def test_what_is_known(given: compatibility.Combination, rules: tuple[str, ...]) -> None:
    assert compatibility.verdict(given) == rules


def test_a_rule_about_three_would_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    @rule("kernels", keys=("method.name",), reason="never tried", fix="choose another")
    def three(case: rules.Case) -> str | None:
        chosen = (case.settings.method.name, case.settings.stage.name, case.settings.compute.attention)
        return "not together" if chosen == ("badam", "pt", "eager") else None

    known = rules.rules_for
    monkeypatch.setattr(compiler, "rules_for", lambda settings: [*known(settings), three])
    monkeypatch.setattr(compatibility, "verdict", compatibility.verdict.__wrapped__)
    wanted = (("method", "badam"), ("stage", "pt"), ("attention", "eager"))
    found = compatibility.only_together([wanted])
    assert found == {("kernels",): ["badam with stage pt with attention eager"]}
    assert compatibility.read_together("\n".join(compatibility.three(found))) == found
