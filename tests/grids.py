"""Tables of cases that are too many for each run of the tests."""

from collections import Counter
from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest

THINNED = {  # test → of its cases, each so many-th always runs; the others are slow
    "architecture/test_reached.py::test_what_adapts_gets_a_gradient": 5,
    "architecture/test_training.py::test_trains_saves_and_reloads": 5,
    "benchmarks/test_benchmark_scores.py::test_the_answers_are_those_of_a_plain_loop": 3,
    "compile/test_estimate.py::test_memory_grows_with": 3,
    "compile/test_estimate.py::test_memory_never_falls_with_more_tokens": 2,
    "compile/test_estimate.py::test_trainable_tensors_are_the_models_or_beside_them": 3,
    "compile/test_rules.py::test_the_legal_neighbour_runs": 16,
    "data/test_encoding.py::test_truncation_of_conversations": 3,
    "doctor/test_doctor.py::test_a_package_that_cannot_be_imported_is_a_line": 2,
    "estimate/test_step.py::test_a_step_is_what_torch_allocates": 3,
    "estimate/test_step.py::test_what_is_kept_is_what_autograd_keeps": 3,
    "execute/test_checkpoint.py::test_an_interrupted_run_is_the_uninterrupted_one": 5,
    "execute/test_loop.py::test_a_step_that_overflows_in_float16_moves_nothing": 3,
    "execute/test_loop.py::test_the_loss_falls": 2,
    "execute/test_proofs.py::test_a_sound_run_is_green": 4,
    "execute/test_signals.py::test_while_training_it_saves_and_goes_on": 4,
    "look/test_look.py::test_a_broken_model_is_refused_naming_the_file": 3,
    "methods/adapters/test_adalora.py::test_goes_on_with_what_was_kept": 5,
    "methods/adapters/test_every_adapter.py::test_trains_and_reads_back": 4,
    "methods/adapters/test_go_on.py::test_a_runs_folder_is_gone_on_from": 5,
    "methods/adapters/test_go_on.py::test_goes_on_where_it_was": 5,
    "methods/adapters/test_go_on.py::test_goes_on_with_the_positions_that_it_was_trained_with": 3,
    "methods/adapters/test_in_the_loop.py::test_a_resume_continues_bit_for_bit": 3,
    "methods/adapters/test_in_the_loop.py::test_sixteen_bits": 5,
    "methods/full_parameter/test_resume.py::test_an_interrupted_run_is_the_uninterrupted_one": 5,
    "quantizers/test_quantizer_rules.py::test_fires_alone": 3,
    "quantizers/test_table2.py::test_a_tick_trains": 5,
    "rollouts/test_roles.py::test_every_adapter_has_all_roles": 4,
    "stages/test_judged.py::test_every_step_is_the_papers_formula": 2,
    "stages/test_judged.py::test_the_gradient_is_that_of_the_formula": 2,
    "stages/test_judged_runs.py::test_checkpointed_activations_change_no_loss": 2,
    "stages/test_judged_runs.py::test_every_method_trains_it": 4,
    "stages/test_judged_runs.py::test_the_reference_is_rounded_as_the_model_is": 2,
    "stages/test_judged_runs.py::test_the_reference_is_the_base": 2,
    "stages/test_ppo.py::test_methods_without_an_adapter_train_without_a_reference": 4,
    "stages/test_ppo.py::test_an_interrupted_run_is_the_uninterrupted_one": 2,
    "stages/test_ppo.py::test_lower_precisions_run": 2,
    "stages/test_ppo.py::test_measuring_between_steps_changes_nothing": 2,
    "stages/test_rm.py::test_an_interrupted_run_is_the_uninterrupted_one": 8,
    "stages/test_rm.py::test_reads_again_to_equal_scores": 4,
    "stages/test_rm.py::test_other_models": 2,
    "stages/test_rm.py::test_the_head_trains_beside_every_method": 5,
    "stages/test_rm.py::test_what_a_method_may_do_besides": 3,
    "steps/test_best.py::test_interrupted_in_an_evaluation": 3,
    "steps/test_grown_runs.py::test_new_tokens_are_planned_and_trained": 5,
    "test_methods.py::test_trains_exactly_what_is_planned": 4,
    "test_saved.py::test_a_run_is_measured_as_it_was_at_its_end": 3,
    "test_schema.py::test_an_option_has_exactly_the_schemas_keys": 4,
    "vision/test_images.py::test_the_named_parts_alone_learn": 8,
    "vision/test_seen_runs.py::test_a_run_sees": 3,
}


def thin(items: Iterable[pytest.Item]) -> None:
    """Marks as slow what THINNED leaves out."""
    met = Counter[str]()
    for item in items:
        name = item.nodeid.removeprefix("tests/").partition("[")[0]
        if name in THINNED:
            if met[name] % THINNED[name]:
                item.add_marker(pytest.mark.slow)
            met[name] += 1


def diagonal(rows: Iterable[str], columns: Iterable[str]) -> list[Any]:
    """All pairs, for `parametrize`: each row and each column is in one that always runs; the others are slow."""
    rows, columns = list(rows), list(columns)
    met = {(rows[at % len(rows)], columns[at % len(columns)]) for at in range(max(len(rows), len(columns)))}
    return [pytest.param(*pair, marks=() if pair in met else pytest.mark.slow) for pair in product(rows, columns)]
