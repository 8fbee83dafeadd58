"""pytorch-optimizer 4.1.0: the steps of its classes over whole tensors as scripts, over lists and in turn.

Each was found by running the class, in float32 and bfloat16, over tensors in many orders, and is called by what its operators
are; a class that rectifies is told from the step on at which it does. Options that change a step send it back to the moments
of ``_pytorch_optimizer_steps.py``.
"""

from __future__ import annotations

from memcalc.arrays import Count
from memcalc.optimizers.base import Implementation, Options, Param, ScriptOf
from memcalc.optimizers.script import Section, in_turn, together
from memcalc.tensors import itemsize

SCRIPTS: dict[str, dict[str, str]] = {
    "ADOPT": {
        "foreach": "+sqrt +div -sqrt -div",
        "single": "+sqrt",
    },
    "AccSGD": {
        "foreach": "",
        "single": "",
    },
    "AdEMAMix": {
        "foreach": "+sqrt +div -sqrt -div",
        "single": "+sqrt +div",
    },
    "AdaBelief": {
        "foreach": "+sub +sqrt -sub -sqrt",
        "single": "+sub +add",
    },
    "AdaBound": {
        "foreach": "+add !full:1p -full -add",
        "single": "+add +full:1p -full",
    },
    "AdaDelta": {
        "foreach": "+add +add2 -add -add2",
        "single": "+add +add2",
    },
    "AdaMax": {
        "foreach": "+abs -abs",
        "single": "+abs -abs",
    },
    "AdaMod": {
        "foreach": "+sqrt !full:1p -full -sqrt",
        "single": "+sqrt +full:1p -full",
    },
    "AdaPNM": {
        "foreach": "+add +mul -add -mul",
        "single": "+add +mul",
    },
    "AdaSmooth": {
        "foreach": "+sub +abs -abs +abs2 +add -add +mul -mul +add2 !full:1p -full -sub -abs2 -add2",
        "single": (
            "+sub +abs -abs +abs2.new +add -add =abs2:abs2.new +pow +pow2 -pow2 +full_like +add2 +sqrt -add2 -sqrt +neg -neg"
        ),
    },
    "AdamC": {
        "foreach": "+add +div -add -div",
        "single": "+add +div -div",
    },
    "AdamG": {
        "foreach": "+pow +div -pow -div",
        "single": "+pow -pow +div",
    },
    "Adan": {
        "foreach": "+sqrt -sqrt",
        "single": "+sqrt",
    },
    "Aida": {
        "single": (
            "+clone +clone2 +mul +sum:1p %n -mul -sum4 +pow +sum2:1p %n -pow +div:1p -sum2 -div3 +pow2 +sum3:1p "
            "%n -pow2 +div2:1p -sum3 -div4 +mul2 +sum4:1p %n -mul2 -sum +pow3 +sum5:1p %n -pow3 +div3:1p -sum5 "
            "-div +pow4 +sum6:1p %n -pow4 +div4:1p -sum6 -div2 +sub +add"
        ),
    },
    "Ano": {
        "foreach": "+mul +sub +div +abs +sign -sign -mul -sub -div -abs",
        "single": "+pow.new +sub +sign -sub =pow:pow.new +abs +sign2 -sign2 -abs",
    },
    "ApolloDQN": {
        "foreach": "+sub +norm:1p %norm +mul +sum:1p +mul2 +sum2:1p -mul2 -sum2 +abs -norm +div -div -sub -abs -mul -sum",
        "single": (
            "+sub +linalg_vector_norm:1p %n -abs +mul +sum:1p %n +mul2:1p -sum +mul3 +sum2:1p %n -mul3 +sub2:1p "
            "-mul2 -sum2 +abs -linalg_vector_norm +div -div"
        ),
    },
    "DiffGrad": {
        "foreach": "+add -add",
        "single": "+add",
    },
    "EXAdam": {
        "foreach": "+add +pow +add2.new +div +div2 -div2 +div3 -div3 =add2:add2.new",
        "single": "+add +pow +add2.new +div +div2 -div2 +div3 -div3 =add2:add2.new",
    },
    "FOCUS": {
        "foreach": "+div +sub +sign -sign -div -sub",
        "single": "+div +sub.new +sign -sign =sub:sub.new",
    },
    "FTRL": {
        "single": "+pow +pow2 +abs +le:nb -abs -le",
    },
    "GaLore": {
        "foreach": "+sqrt +div -sqrt -div",
        "single": "+sqrt",
    },
    "Grams": {
        "foreach": "+sqrt +div +sign -sign",
        "single": "+sqrt +div +sign -sign",
    },
    "Gravity": {
        "foreach": "+norm:1p %norm +reciprocal:1p -norm +div +div2 -reciprocal -div -div2",
        "single": "+abs +max:1p -abs +reciprocal:1p +mul:1p -reciprocal -max +div +pow -div +add -pow +div2 -add",
    },
    "GrokFastAdamW": {
        "foreach": "+sqrt -sqrt",
        "single": "+sqrt",
    },
    "Kate": {
        "foreach": "+pow +div -div +mul -pow -mul",
        "single": "+pow +div -div +mul",
    },
    "LaProp": {
        "foreach": "*to_copy:1f +add -add -to_copy",
        "single": "+add",
    },
    "Lamb": {
        "foreach": (
            "+sqrt +norm:1p %norm *stack:1p -norm +norm2:1p %norm *stack2:1p -norm2 *ne:1b *ne2:1b "
            "*bitwise_and:1b -ne -ne2 *add:1p *div:1p -add !scalar_tensor:1p *where:1p -scalar_tensor "
            "-bitwise_and -div -sqrt"
        ),
        "single": (
            "+sqrt +linalg_vector_norm:1p %n +linalg_vector_norm2:1p %n +eq:1b -eq -linalg_vector_norm2 "
            "-linalg_vector_norm -sqrt"
        ),
    },
    "Lion": {
        "foreach": "+lerp -lerp",
        "single": "+lerp",
    },
    "NovoGrad": {
        "single": "+pow +sum:1p %n -pow +sqrt:1p",
    },
    "PAdam": {
        "foreach": "+sqrt -sqrt",
        "single": "+sqrt",
    },
    "PNM": {
        "foreach": "+mul -mul",
        "single": "+mul",
    },
    "RAdam": {
        "foreach": "+sqrt -sqrt",
        "single": "+sqrt",
    },
    "ScheduleFreeAdamW": {
        "foreach": "+div +add -div -add",
        "single": "+div +add -div",
    },
    "ScheduleFreeRAdam": {
        "foreach": "+sqrt -sqrt",
        "single": "+sqrt",
    },
    "ScheduleFreeSGD": {
        "foreach": "",
        "single": "",
    },
    "Tiger": {
        "foreach": "+sign -sign",
        "single": "+sign -sign",
    },
    "VSGD": {
        "foreach": (
            "+div +div2 +mul +mul2 +mul3 -mul3 +add +mul4 +pow +add2 +add3 +mul5 -mul2 +pow2 -pow2 !full:1p -full "
            "-div -div2 -mul -mul5 -add -mul4 -pow -add2 -add3"
        ),
    },
}
"""Class -> form -> what its step makes and lets go of, in order."""
CENTRED = "+mean:first +shift:first -mean -shift"
"""A gradient centred over all but its first dimension, of two dimensions and more (centralize_gradient)."""


def scripts_of(cls: str, defaults: Options) -> ScriptOf | None:
    """A class's script with its default options; None where it has none."""
    if cls not in SCRIPTS and cls != "Ranger":
        return None

    def script(o: Options, form: Implementation) -> list[Section] | None:
        if any(o[key] != value for key, value in defaults.items() if key != "foreach"):
            return None
        if cls == "Ranger":
            return _ranger(form)
        notation = SCRIPTS[cls].get(form)
        if notation is None:
            return None
        return [in_turn(notation) if form == "single" else together(notation)]

    return script


def _ranger(form: Implementation) -> list[Section]:
    def centred(p: Param) -> str:
        return CENTRED if p.ndim > 1 else ""

    if form == "single":
        return [in_turn(lambda p: f"{centred(p)} +root", first=_first)]
    return [in_turn(centred, first=_first), together("+root -root")]


def _first(p: Param) -> Count:
    return p.shape[0] * itemsize(p.dtype)
