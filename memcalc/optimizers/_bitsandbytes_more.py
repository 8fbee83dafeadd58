"""The classes of bitsandbytes 0.50.2, each with its own constructor: which widths and pagings exist, and what they refuse."""

from __future__ import annotations

from typing import Any

from memcalc.optimizers.bitsandbytes import Form, refuse, register

TWO = (("state1", "momentum", 1), ("state2", "variance", 1))
ONE = (("state1", "momentum", 1),)
SQUARES = (("state1", "variance", 1),)
DOUBLE = (("state1", "momentum", 2), ("state2", "variance", 1))
WIDTHS: tuple[tuple[str, int | None], ...] = (("", None), ("8bit", 8), ("32bit", 32))
SIZE = {"min_8bit_size": 4096}
EMBEDDINGS = {"embeddings_32bit": False}

no_amsgrad = ("amsgrad", bool, "is not supported with 8-bit states")
no_width = ("optim_bits", lambda bits: bits != 32, "is not 32, the only value an 8-bit class takes")
no_momentum = ("momentum", lambda momentum: momentum == 0, "is refused: the class needs momentum")


def sized(bits: int | None) -> dict[str, Any]:
    """The option of the threshold, and the option of the width where the class leaves it open."""
    return {**SIZE, **({"optim_bits": 32} if bits is None else {})}


for name in ("Adam", "AdamW"):
    common = {"lr", "betas", "eps", "weight_decay"}
    for suffix, bits in WIDTHS:
        for prefix, paged in (("", None), ("Paged", True)):
            # is_paged exists in Adam's paged classes too, and changes nothing there
            names = common | ({"is_paged"} if paged and name == "Adam" else set())
            options: dict[str, Any] = {**sized(bits), **({} if paged else {"is_paged": False})}
            rules = [no_amsgrad, no_width] if bits == 8 else []
            if bits == 8:
                options |= {"amsgrad": False, "optim_bits": 32}
            else:
                names |= {"amsgrad", "optim_bits"} - set(options)
            form = Form(TWO, bits, paged)
            register(prefix + name + suffix, form, name.lower(), options, constructor=names, refuses=refuse(*rules))

for suffix, bits in WIDTHS:
    for prefix, paged in (("", None), ("Paged", True)):
        options = {**sized(bits), **({} if paged else {"is_paged": False})}
        names = {"lr", "betas", "weight_decay"}
        register(f"{prefix}Lion{suffix}", Form(ONE, bits, paged), "lion", options, constructor=names, refuses=refuse())
        # AdEMAMix32bit alone inherits the plain two-state buffers, so its state1 is not doubled (ademamix.py:355-383)
        double = Form(TWO if bits == 32 else DOUBLE, bits, paged, EMBEDDINGS)
        names = {"lr", "betas", "alpha", "t_alpha", "t_beta3", "eps", "weight_decay"}
        register(f"{prefix}AdEMAMix{suffix}", double, "ademamix", options, constructor=names, refuses=refuse())

    options = {**sized(bits), "max_unorm": 1.0}
    names = {"lr", "bias_correction", "betas", "eps", "weight_decay", "adam_w_mode"}
    rules = []
    if bits == 8:
        options |= {"amsgrad": False}
        rules = [no_amsgrad, ("max_unorm", lambda norm: norm != 1.0, "is not 1.0, the only value LAMB8bit takes")]
    else:
        names |= {"amsgrad"}
    register(f"LAMB{suffix}", Form(TWO, bits, False), "lamb", options, constructor=names, refuses=refuse(*rules))

    momentum = {"preset": {"momentum": 0.9}, "refuses": refuse(no_momentum)}  # the constructor refuses its own default of 0
    names = {"lr", "dampening", "weight_decay", "nesterov"}
    options = {**sized(bits), "momentum": 0.9}
    register(f"SGD{suffix}", Form(ONE, bits, False), "sgd", options, constructor=names, **momentum)
    options = {**options, "max_unorm": 0.02}
    register(f"LARS{suffix}", Form(ONE, bits, False), "lars", options, constructor=names, **momentum)

    options = {**sized(bits), "centered": False, "alpha": 0.99}
    names = {"lr", "eps", "weight_decay", "momentum"}
    rules = [("centered", bool, "is not supported"), ("alpha", lambda alpha: alpha == 0, "is not supported at 0")]
    register(f"RMSprop{suffix}", Form(SQUARES, bits, False), "rmsprop", options, constructor=names, refuses=refuse(*rules))

    options = {**sized(bits), "lr_decay": 0.0, "initial_accumulator_value": 0.0}
    names = {"lr", "weight_decay", "eps"}
    rules = [(key, bool, "is not supported above 0") for key in ("lr_decay", "initial_accumulator_value")]
    if bits == 8:
        options |= {"optim_bits": 8}
        rules.append(("optim_bits", lambda width: width != 8, "is not 8, the only value Adagrad8bit takes"))
    else:
        names |= {"optim_bits"} - set(options)
    register(f"Adagrad{suffix}", Form(SQUARES, bits, False), "adagrad", options, constructor=names, refuses=refuse(*rules))
