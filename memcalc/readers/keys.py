"""The keys of a config: which spelling stands for which, and which words are keys at all.

A ``config.json`` may hold anything, and what no family declares is passed over, as transformers does. A file or mapping
written for memcalc may not: there an unknown key is a slip of the pen that would silently leave a default in force.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic.fields import FieldInfo

from memcalc.errors import NO_VALUE, InputError, did_you_mean
from memcalc.families.base import FamilyConfig

OWN_KEYS = frozenset({"model_type", "architectures", "dtype", "torch_dtype", "name", "hub", "source", "num_parameters", "note"})
"""Keys of memcalc's own files, whatever the family."""

_WORDS = """
_attn_implementation _commit_hash _name_or_path activation activation_dropout activation_function add_cross_attention
apply_spec_augment attention_dropout attention_probs_dropout_prob attention_softmax_in_fp32 attn_implementation
attn_logit_softcapping attn_pdrop auto_map aux_loss_alpha bad_words_ids begin_suppress_tokens boi_token_id boi_token_index
bos_token_id cache_implementation chunk_size_feed_forward classifier_activation classifier_dropout classifier_dropout_prob
clip_qkv cls_token_id decoder_layerdrop decoder_start_token_id dense_act_fn dropout dropout_rate early_stopping emb_pdrop
embd_pdrop embed_dropout embedding_dropout encoder_layerdrop eoi_token_id eoi_token_index eos_token_id ep_size
experts_implementation final_logit_softcapping finetuning_task forced_bos_token_id forced_eos_token_id fp32_residual
gradient_checkpointing hidden_act hidden_activation hidden_dropout hidden_dropout_prob id2label image_token_id
image_token_index init_device init_std initializer_factor initializer_range is_decoder is_encoder_decoder is_gated_act
keys_to_ignore_at_inference label2id label_smoothing language layer_norm_eps layer_norm_epsilon layer_types layerdrop legacy
logit_scale logit_scale_init_value mask_feature_length mask_feature_min_masks mask_feature_prob mask_time_length
mask_time_min_masks mask_time_prob max_length max_position_embeddings max_relative_positions max_window_layers
median_filter_width min_length mlm_probability mm_tokens_per_image model_max_length moe_layer_freq n_group norm_eps
norm_epsilon norm_topk_prob num_beams num_ln_in_parallel_attn num_mtp_layers num_nextn_predict_layers
original_max_position_embeddings out_features out_indices output_attentions output_hidden_states output_past
output_router_logits pad_token_id pooler_act pooler_activation pooler_dropout pooler_hidden_act position_embedding_type
prefix pretraining_tp problem_type qa_dropout quantization_config query_pre_attn_scalar relative_attention_max_distance
reorder_and_upcast_attn rescale_prenorm_residual resid_dropout resid_pdrop residual_dropout residual_in_fp32 return_dict
rms_norm_eps rope_interleave rope_local_base_freq rope_parameters rope_scaling rope_theta rotary_emb_base rotary_pct
routed_scaling_factor router_aux_loss_coef router_dtype router_jitter_noise scale_attention_softmax_in_fp32
scale_attn_by_inverse_layer_idx scale_attn_weights scale_decoder_outputs scale_embedding scoring_func sep_token_id seq_aux
seq_classif_dropout sinusoidal_pos_embds sliding_window slow_but_exact stage_names summary_activation summary_first_dropout
summary_last_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens swiglu_alpha swiglu_limit
task_specific_params tie_word_embeddings time_step_floor time_step_init_scheme time_step_limit time_step_max time_step_min
time_step_scale tokenizer_class topk_group topk_method torchscript transformers_version use_associative_scan use_bfloat16
use_bidirectional_attention use_cache use_mambapy use_parallel_residual use_sliding_window validate_questions_answering_dict
vocab_projection window_size embedding_fraction expansion_ratio learned_pos_emb no_bias norm_type qk_head_dim
"""
PASSIVE_KEYS = frozenset(_WORDS.split())
"""Keys that transformers writes and that decide no tensor in a family that does not declare them.

source: transformers 5.23.0, the keys of ``to_dict()`` of the default config of every family memcalc knows; older spellings
from the releases before 5.
"""


def nested_config(field: FieldInfo) -> type[FamilyConfig] | None:
    """The class of a config inside a config (``text_config``); None for a plain key."""
    options = (field.annotation, *get_args(field.annotation))
    return next((option for option in options if isinstance(option, type) and issubclass(option, FamilyConfig)), None)


def settled(
    config: type[FamilyConfig], given: Mapping[str, Any], path: str, *, strict: bool = False
) -> tuple[dict[str, Any], dict[str, str]]:
    """The config under its declared keys, and for each that was spelled otherwise, how.

    Where two spellings of one key are given, the declared one holds, as it does in transformers; in a file written for
    memcalc (``strict``) they must agree.

    Raises:
        InputError: two spellings that disagree, in a strict config.
    """
    values = dict(given)
    spelled: dict[str, str] = {}
    for alias, key in config.aliases.items():
        if alias not in given or alias in config.model_fields:
            continue
        said = spelled.get(key, key)
        if values.get(key) is None:
            values[key], spelled[key] = given[alias], alias
        elif strict and given[alias] is not None and given[alias] != values[key]:
            rule = f"says otherwise than {said} = {values[key]}, which is the same key"
            raise InputError(f"{path}.{alias}", given[alias], rule, "keep one of the two")
        del values[alias]
    for key, field in config.model_fields.items():
        inner = nested_config(field)
        if inner is not None and isinstance(values.get(key), Mapping):
            values[key], _ = settled(inner, values[key], f"{path}.{key}", strict=strict)
    return values, spelled


def unknown_keys(config: type[FamilyConfig], given: Mapping[str, Any], path: str, noun: str) -> Iterator[InputError]:
    """An error for each key that neither the family (``noun``) nor transformers' common vocabulary has."""
    known = {*config.model_fields, *config.aliases, *OWN_KEYS, *PASSIVE_KEYS}
    for key, value in given.items():
        if key not in known:
            yield InputError(f"{path}.{key}", NO_VALUE, f"is not a key of {noun}", _nearest(str(key), config))
            continue
        inner = nested_config(config.model_fields[key]) if key in config.model_fields else None
        if inner is not None and isinstance(value, Mapping):
            yield from unknown_keys(inner, value, f"{path}.{key}", f"{noun}'s {key}")


def _nearest(key: str, config: type[FamilyConfig]) -> str:
    """The keys a person may have meant: those that decide something before those that do not."""
    declared = [*config.model_fields, *config.aliases]
    for words in (declared, sorted(OWN_KEYS | PASSIVE_KEYS)):
        near = did_you_mean(key, words)
        if near.startswith("did you mean"):
            return near
    return f"its keys are those of a config.json, as {', '.join(declared[1:6])}"
