"""Tables of cases that are too many for each run of the tests."""

from collections import Counter
from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest

THINNED = {  # test → of its cases, each so many-th always runs; the others are slow
    "architecture/test_reached.py::test_what_adapts_gets_a_gradient": 5,
    "architecture/test_reached.py::test_what_trains_gets_a_gradient": 3,
    "architecture/test_training.py::test_trains_saves_and_reloads": 5,
    "attention/test_s2.py::test_gradients_live_and_checkpointing_keeps_them": 3,
    "benchmarks/test_benchmark_scores.py::test_the_answers_are_those_of_a_plain_loop": 3,
    "compile/test_estimate.py::test_memory_grows_with": 3,
    "compile/test_estimate.py::test_memory_never_falls_with_more_tokens": 2,
    "compile/test_estimate.py::test_trainable_tensors_are_the_models_or_beside_them": 6,
    "compile/test_rules.py::test_a_key_that_is_forced_is_asked_for": 24,
    "compile/test_rules.py::test_the_legal_neighbour_runs": 64,
    "compose/test_compose.py::test_an_unknown_key_is_refused_on_the_command_line": 4,
    "data/test_encoding.py::test_truncation_of_conversations": 3,
    "data/test_formats_properties.py::test_any_row_gives_a_record_or_a_reason": 2,
    "data/test_known.py::test_another_data_set_is_not_taken_for_it": 2,
    "data/test_read.py::test_a_large_file_takes_no_memory": 3,
    "data/test_render.py::test_a_named_template_takes_tools": 2,
    "data/test_render.py::test_every_template_tells_where_its_answers_are": 2,
    "data/test_stream.py::test_from_any_place_the_very_same_follows": 2,
    "doctor/test_doctor.py::test_a_package_that_cannot_be_imported_is_a_line": 3,
    "estimate/test_cuda.py::test_a_model_of_a_billion": 2,
    "estimate/test_flops.py::test_a_short_sequence_is_the_products_of_its_weights": 3,
    "estimate/test_paper.py::test_table_4": 2,
    "estimate/test_step.py::test_a_step_is_what_torch_allocates": 3,
    "estimate/test_step.py::test_recomputed_layers_are_there_one_at_a_time": 3,
    "estimate/test_step.py::test_what_is_kept_is_what_autograd_keeps": 3,
    "execute/test_checkpoint.py::test_a_full_disk_keeps_the_checkpoint_before": 3,
    "execute/test_checkpoint.py::test_an_interrupted_run_is_the_uninterrupted_one": 10,
    "execute/test_lean.py::test_a_child_imports_what_its_plan_needs": 2,
    "execute/test_loop.py::test_a_step_that_overflows_in_float16_moves_nothing": 6,
    "execute/test_loop.py::test_checkpointed_activations_change_no_loss": 2,
    "execute/test_loop.py::test_the_loss_falls": 2,
    "execute/test_loop.py::test_weight_decay_is_decoupled_and_of_matrices": 3,
    "execute/test_proofs.py::test_a_sound_run_is_green": 4,
    "execute/test_signals.py::test_while_training_it_saves_and_goes_on": 4,
    "export/test_own_base.py::test_a_base_that_cannot_be_made_is_refused_before_anything_is_read": 2,
    "export/test_own_base.py::test_it_is_the_model_that_was_trained": 2,
    "export/test_own_base.py::test_its_base_is_read_in_the_type_that_the_run_read_it_in": 3,
    "look/test_look.py::test_a_broken_model_is_refused_naming_the_file": 3,
    "look/test_walked.py::test_a_broken_gguf_file_is_refused": 2,
    "methods/adapters/test_adalora.py::test_a_pattern_that_does_not_say_the_ranks_is_refused": 3,
    "methods/adapters/test_adalora.py::test_goes_on_with_what_was_kept": 5,
    "methods/adapters/test_adalora.py::test_learns_in_sixteen_bits": 2,
    "methods/adapters/test_adapter_experts.py::test_experts_stay_unless_asked": 3,
    "methods/adapters/test_adapter_experts.py::test_experts_train_exactly_as_planned": 3,
    "methods/adapters/test_adapter_parts.py::test_only_in_the_parts_asked_for": 2,
    "methods/adapters/test_every_adapter.py::test_trains_and_reads_back": 4,
    "methods/adapters/test_go_on.py::test_a_runs_folder_is_gone_on_from": 10,
    "methods/adapters/test_go_on.py::test_goes_on_where_it_was": 5,
    "methods/adapters/test_go_on.py::test_goes_on_with_the_positions_that_it_was_trained_with": 6,
    "methods/adapters/test_go_on.py::test_one_that_started_from_the_weights_goes_on_as_lora": 3,
    "methods/adapters/test_in_the_loop.py::test_a_resume_continues_bit_for_bit": 3,
    "methods/adapters/test_in_the_loop.py::test_sixteen_bits": 5,
    "methods/adapters/test_starts.py::test_base_and_adapter_are_the_weights": 3,
    "methods/adapters/test_starts.py::test_nearer_than_rounding": 3,
    "methods/adapters/test_starts.py::test_the_export_stands_beside_the_original": 3,
    "methods/full_parameter/test_badam.py::test_each_period_is_adam_on_its_block": 3,
    "methods/full_parameter/test_layerwise.py::test_layerwise_is_the_same_training": 2,
    "methods/full_parameter/test_llama_pro.py::test_an_untrained_expansion_is_the_model": 2,
    "methods/full_parameter/test_llama_pro.py::test_only_the_new_layers_are_trained": 2,
    "methods/full_parameter/test_resume.py::test_an_interrupted_run_is_the_uninterrupted_one": 5,
    "models/test_options.py::test_planning_an_option_needs_no_network": 2,
    "quantizers/test_held.py::test_a_quantized_checkpoint": 3,
    "quantizers/test_held.py::test_quantized_while_reading": 3,
    "quantizers/test_quantizer_rules.py::test_fires_alone": 3,
    "quantizers/test_table2.py::test_a_tick_trains": 5,
    "rewards/test_rewards.py::test_what_a_server_is_refused_for": 2,
    "rollouts/test_roles.py::test_every_adapter_has_all_roles": 6,
    "rollouts/test_roles.py::test_one_base_and_frozen_roles": 2,
    "rollouts/test_roles.py::test_the_reference_is_the_adapter_that_is_gone_on_from": 2,
    "stages/test_judged.py::test_every_step_is_the_papers_formula": 2,
    "stages/test_judged.py::test_the_gradient_is_that_of_the_formula": 2,
    "stages/test_judged_runs.py::test_a_killed_run_whose_reference_is_lost_measures_the_same": 2,
    "stages/test_judged_runs.py::test_an_interrupted_run_is_the_uninterrupted_one": 3,
    "stages/test_judged_runs.py::test_checkpointed_activations_change_no_loss": 2,
    "stages/test_judged_runs.py::test_every_method_trains_it": 8,
    "stages/test_judged_runs.py::test_the_reference_is_rounded_as_the_model_is": 2,
    "stages/test_judged_runs.py::test_the_reference_is_the_adapter_that_is_gone_on_from": 2,
    "stages/test_judged_runs.py::test_the_reference_is_the_base": 2,
    "stages/test_ppo.py::test_an_interrupted_run_is_the_uninterrupted_one": 2,
    "stages/test_ppo.py::test_lower_precisions_run": 2,
    "stages/test_ppo.py::test_measuring_between_steps_changes_nothing": 2,
    "stages/test_ppo.py::test_methods_without_an_adapter_train_without_a_reference": 4,
    "stages/test_rm.py::test_an_interrupted_run_is_the_uninterrupted_one": 8,
    "stages/test_rm.py::test_every_step_is_the_formula": 2,
    "stages/test_rm.py::test_other_models": 2,
    "stages/test_rm.py::test_reads_again_to_equal_scores": 4,
    "stages/test_rm.py::test_the_head_trains_beside_every_method": 5,
    "stages/test_rm.py::test_what_a_method_may_do_besides": 3,
    "steps/test_best.py::test_interrupted_in_an_evaluation": 3,
    "steps/test_best.py::test_stages_that_judge_measure_what_they_watch": 2,
    "steps/test_grown_runs.py::test_new_tokens_are_planned_and_trained": 5,
    "steps/test_heads.py::test_answers_that_share_a_prompt_are_as_rows_of_their_own": 2,
    "steps/test_heads.py::test_blocks_have_the_loss_and_gradients_of_torchs_kernel": 2,
    "steps/test_heads.py::test_loss_and_gradients_are_the_models_own": 2,
    "steps/test_heads.py::test_no_token_sees_the_future": 3,
    "steps/test_heads.py::test_which_kinds_part_packed_documents": 3,
    "steps/test_kernels.py::test_recomputed_activations_give_the_same_steps": 3,
    "steps/test_patch.py::test_a_saved_adapter_keeps_the_positions": 2,
    "steps/test_patch.py::test_every_rotary_kind_is_scaled": 4,
    "steps/test_patch.py::test_saved_weights_keep_the_positions": 2,
    "steps/test_vocabulary.py::test_every_kind_grows": 3,
    "steps/test_watch.py::test_the_rows_are_those_of_the_batch": 2,
    "templates/test_templates.py::test_renders_alike_whatever_the_environment_does_with_white_space": 2,
    "test_covering.py::test_a_legal_combination_runs": 4,
    "test_methods.py::test_trains_exactly_what_is_planned": 4,
    "test_saved.py::test_a_run_is_measured_as_it_was_at_its_end": 6,
    "test_schema.py::test_an_option_has_exactly_the_schemas_keys": 6,
    "test_typed.py::test_a_file_and_the_command_line_mean_the_same": 2,
    "vision/test_images.py::test_recomputed_activations_give_the_same_gradients": 3,
    "vision/test_images.py::test_the_named_parts_alone_learn": 8,
    "vision/test_quantized.py::test_the_decoders_linear_layers_alone": 3,
    "vision/test_seen_pairs.py::test_each_row_refers_to_its_own_image": 3,
    "vision/test_seen_runs.py::test_a_run_sees": 3,
    "vision/test_seen_runs.py::test_what_is_answered_is_what_training_would_see": 2,
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
