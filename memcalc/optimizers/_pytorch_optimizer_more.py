"""pytorch-optimizer 4.1.0, continued: classes that keep a few buffers of the parameter's shape and dtype, one line each."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.optimizers._parts import whole
from memcalc.optimizers._pytorch_optimizer_parts import buffers, register
from memcalc.optimizers.base import Options, Param, State

_ADAM = "exp_avg:momentum exp_avg_sq:variance"
_BOUND = f"{_ADAM} max_exp_avg_sq:variance?ams_bound"
_BELIEF = "exp_avg:momentum exp_avg_var:variance max_exp_avg_var:variance?ams_bound"
_OFF = {"ams_bound": False}
_DECAY = "weight_decay weight_decouple fixed_decay"
_COMMON = f"lr betas {_DECAY} eps maximize"
_RECTIFIED = f"{_COMMON} rectify n_sma_threshold degenerated_to_sgd foreach"
_FREE = "lr betas weight_decay r weight_lr_power eps maximize foreach"
_21 = """num_iterations beta0 use_softplus beta_softplus disable_lr_scheduler num_warm_up_iterations num_warm_down_iterations
warm_down_min_lr agc_clipping_value agc_eps centralize_gradients normalize_gradients lookahead_merge_time
lookahead_blending_alpha norm_loss_factor"""

_PLAIN: tuple[tuple[str, str, str, str, str, dict[str, bool]], ...] = (
    # class, file, what it keeps, its states, the constructor's words without the options, the options
    (
        "AdEMAMix",
        "ademamix",
        "a fast and a slow momentum",
        f"{_ADAM} exp_avg_slow:momentum",
        f"{_COMMON} alpha t_alpha_beta3",
        {},
    ),
    (
        *("MARS", "mars", "two moments and the last gradient", f"{_BOUND} last_grad:previous_gradient"),
        *(f"{_COMMON} gamma mars_type optimize_1d lr_1d betas_1d weight_decay_1d cautious", _OFF),
    ),
    ("Lion", "lion", "one momentum", "exp_avg:momentum", f"lr betas {_DECAY} maximize", {}),
    (
        *("ScheduleFreeAdamW", "schedulefree", "the iterate z and a variance"),
        *("z:momentum exp_avg_sq:variance max_exp_avg_sq:variance?ams_bound", f"{_FREE} warmup_steps decoupling_c", _OFF),
    ),
    (
        "ScheduleFreeRAdam",
        "schedulefree",
        "the iterate z and a variance",
        "z:momentum exp_avg_sq:variance",
        f"{_FREE} silent_sgd_phase",
        {},
    ),
    (
        *("Ranger21", "ranger21", "two momenta, a variance and its maximum, and the slow weights"),
        "grad_ma:momentum neg_grad_ma:momentum variance_ma:variance max_variance_ma:variance lookahead_params:average",
        *(f"{_COMMON} {_21}", {}),
    ),
    (
        "AdaPNM",
        "adapnm",
        "two momenta and the variance's maximum",
        f"{_BOUND} neg_exp_avg:momentum",
        _COMMON,
        {"ams_bound": True},
    ),
    ("PNM", "pnm", "two momenta", "pos_momentum:momentum neg_momentum:momentum", _COMMON, {}),
    ("ADOPT", "adopt", "Adam's two moments", _ADAM, f"{_COMMON} clip_lambda", {}),
    ("AdaBelief", "adabelief", "momentum and variance of the surprise", _BELIEF, _RECTIFIED, {**_OFF, "rectify": False}),
    ("AdaBound", "adabound", "Adam's two moments", _BOUND, f"{_COMMON} final_lr gamma", _OFF),
    (
        "AdaDelta",
        "adadelta",
        "two averages of squares",
        "square_avg:variance acc_delta:variance",
        f"lr rho {_DECAY} eps maximize",
        {},
    ),
    ("AdaMax", "adamax", "momentum and an infinity norm", "exp_avg:momentum exp_inf:variance", _COMMON, {}),
    ("AdaMod", "adamod", "two moments and an average rate", f"{_ADAM} exp_avg_lr:average", _COMMON, {}),
    ("AdaNorm", "adanorm", "two moments and the gradient's norm", f"{_BELIEF} ~exp_grad_norm:scales", f"{_COMMON} r", _OFF),
    (
        "Adai",
        "adai",
        "two moments and the betas' product",
        f"{_ADAM} beta1_prod:scales",
        f"{_COMMON} stable_weight_decay dampening",
        {},
    ),
    ("AdamC", "adamc", "Adam's two moments", _BOUND, _COMMON, _OFF),
    ("AdamG", "adamg", "three moments", "m:momentum v:variance r:variance", f"{_COMMON} p q", {}),
    ("AdamS", "adams", "Adam's two moments", _BOUND, _COMMON, _OFF),
    ("Ano", "ano", "Adam's two moments", _ADAM, f"{_COMMON} logarithmic_schedule", {}),
    ("AvaGrad", "avagrad", "Adam's two moments", _ADAM, _COMMON, {}),
    (
        "DiffGrad",
        "diffgrad",
        "two moments and the last gradient",
        f"{_BOUND} previous_grad:previous_gradient",
        _RECTIFIED,
        _OFF,
    ),
    (
        "LaProp",
        "laprop",
        "Adam's two moments",
        f"{_BOUND} exp_mean_avg_beta2:average?centered",
        f"{_COMMON} steps_before_using_centered",
        {**_OFF, "centered": False},
    ),
    ("PAdam", "padam", "Adam's two moments", _ADAM, f"{_COMMON} partial", {}),
    ("RAdam", "radam", "Adam's two moments", _ADAM, f"{_COMMON} n_sma_threshold degenerated_to_sgd", {}),
    ("AccSGD", "sgd", "one momentum", "momentum_buffer:momentum", "lr kappa xi constant weight_decay maximize", {}),
    (
        "AdaSmooth",
        "adasmooth",
        "the last weights and three averages",
        "prev_param:previous s:average n:average exp_avg_sq:variance",
        _COMMON,
        {},
    ),
    (
        "FOCUS",
        "focus",
        "momentum and an average of weights",
        "exp_avg:momentum pbar:average",
        "lr betas gamma weight_decay maximize",
        {},
    ),
    ("FTRL", "ftrl", "two sums", "z:momentum n:variance", "lr lr_power beta lambda_1 lambda_2 maximize", {}),
    ("Gravity", "gravity", "one momentum", "v:momentum", "lr alpha beta maximize", {}),
    ("Kate", "kate", "two sums", "m:variance b:variance", f"lr delta {_DECAY} eps maximize", {}),
    (
        "Ranger",
        "ranger",
        "two moments and the slow weights",
        f"{_ADAM} slow_buffer:average",
        f"{_COMMON} alpha k n_sma_threshold degenerated_to_sgd use_gc gc_conv_only",
        {},
    ),
    (
        "ScheduleFreeSGD",
        "schedulefree",
        "the iterate z",
        "z:momentum",
        "lr momentum weight_decay r weight_lr_power warmup_steps eps maximize",
        {},
    ),
    (
        "VSGD",
        "sgd",
        "three averages",
        "mug:momentum bg:variance bhg:variance",
        "lr ghattg ps tau1 tau2 weight_decay weight_decouple eps maximize",
        {},
    ),
    (
        "ApolloDQN",
        "apollo",
        "momentum, approximate Hessian and the update",
        "exp_avg_grad:momentum approx_hessian:hessian update:previous",
        "lr init_lr beta rebound weight_decay weight_decay_type warmup_steps eps maximize",
        {},
    ),
    ("SWATS", "swats", "two moments and one number", f"{_BOUND} ~exp_avg2:scales", f"{_COMMON} nesterov", _OFF),
    ("Aida", "aida", "momentum and variance of the surprise", _BELIEF, f"{_RECTIFIED} k xi", _OFF),
)

for _cls, _file, _summary, _kept, _words, _options in _PLAIN:
    register(_cls, f"{_file}.py", f"{_summary}, in the parameter's dtype", f"{_words} foreach", _options)(buffers(_kept))


@register(
    "AdamP",
    "adamp.py",
    "Adam's two moments, in the parameter's dtype",
    f"{_COMMON} delta wd_ratio nesterov",
    {"foreach": False},
)
@register("EXAdam", "exadam.py", "Adam's two moments, in the parameter's dtype", _COMMON, {"foreach": False})
@register(
    "Grams",
    "grams.py",
    "Adam's two moments, in the parameter's dtype",
    "lr betas weight_decay weight_decouple eps maximize",
    {"foreach": False},
)
def two_moments(p: Param, o: Options) -> Iterator[State]:
    """Stepped one by one unless asked otherwise."""
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance")


@register(
    "LARS",
    "lars.py",
    "one momentum in the parameter's dtype",
    "lr weight_decay dampening trust_coefficient nesterov foreach maximize",
    {"momentum": 0.9},
)
def lars(p: Param, o: Options) -> Iterator[State]:
    """Nothing without momentum."""
    if o.momentum > 0:
        yield whole(p, "momentum_buffer", "momentum")
