"""What a torch.optim 2.13 step makes and lets go of, class by class, as scripts of the step's own operators.

A tensor lives until its Python name is bound again, so the one-by-one loops keep the parameter before's last results while the
next parameter's are made. ``weight_decay`` and ``maximize`` copy the gradient unless the decay is decoupled. Fused kernels
allocate nothing. tests/optimizers/test_torch.py measures each line of this file.
"""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count, minimum, product
from memcalc.optimizers.base import Implementation, Options, Param
from memcalc.optimizers.script import Section, in_turn, together, width


def decayed(o: Options) -> bool:
    """Whether the decay is added to the gradient."""
    return bool(o.weight_decay) and not o.get("decoupled_weight_decay", False)


def gradient(o: Options) -> str:
    """What a gradient's name is bound to: itself or maximize's copy, then the sum with the decay."""
    return ("+grad" if o.maximize else "-grad") + " +grad" * decayed(o)


def listed(o: Options) -> str:
    """The same over lists: the decay is added in place where there is a copy already."""
    return "+grad " * (decayed(o) or bool(o.maximize))


def sgd(o: Options, form: Implementation) -> Iterator[Section]:
    """torch/optim/sgd.py:322-476."""

    def own(p: Param) -> Count:
        return p.numel * max(width("g", p), width("p", p) if o.weight_decay else 0)

    if form == "foreach":
        # grads, then nesterov in place in the copy where there is one
        yield together("+grad:own" if listed(o) else "", own=own)
    if form == "single":
        # -grads[i] is made before the name lets go of the last one; with momentum that name is the buffer's
        buffer = ("+grad" if o.nesterov else "-grad") if o.momentum else ""
        yield in_turn(f"{gradient(o)} {buffer}".replace("+grad", "+grad:own"), own=own)


def adam(o: Options, form: Implementation) -> Iterator[Section]:
    """torch/optim/adam.py:347-800; AdamW is Adam with decoupled decay (adamw.py:51)."""
    if form == "foreach":
        # scaled_device_grads exists when the betas are tensors; both lists are deleted before exp_avg_sq_sqrt is made
        yield together(f"{listed(o)} {'+scaled' if o.tensor_betas else ''} -grad -scaled")
        bias = "+bias1:1f +bias2:1f" if o.capturable else ""
        yield together(f"{bias} +root -bias1 -bias2 -root")
    if form == "single":
        if o.tensor_betas:
            yield together("!beta1:1f")  # one copy on the device for all, device_beta1
        lerp = "+weight:1f -weight" if o.tensor_betas else ""
        if not o.capturable:
            yield in_turn(f"{gradient(o)} {lerp} +root +denom -root")
            return
        bias = "+power:1f +bias1:1f -power +power:1f +bias2:1f -power +inverse:1f +step:1f -inverse +negative:1f +bias2_root:1f"
        largest = "+largest -largest" if o.amsgrad else ""
        yield in_turn(
            f"{gradient(o)} {lerp} {bias} {largest} +root +factor:1f +quotient -root -factor"
            " +inverse:1f +eps:1f -inverse -eps =denom:quotient"
        )


def adamw(o: Options, form: Implementation) -> Iterator[Section]:
    """Adam's step with the decay decoupled."""
    return adam(Options({**o, "decoupled_weight_decay": True}), form)


def adagrad(o: Options, form: Implementation) -> Iterator[Section]:
    """torch/optim/adagrad.py:364-540: std, and the numerator, which reuses the gradient's copy where there is one."""
    if form == "foreach":
        numerator = "" if listed(o) else "+numerator"
        yield together(f"{listed(o)} +std {numerator} -std -numerator -grad")
    if form == "single":
        yield in_turn(f"{gradient(o)} +std -grad")


def adadelta(o: Options, form: Implementation) -> Iterator[Section]:
    """torch/optim/adadelta.py:245-399: std and delta."""
    if form == "foreach":
        yield together(f"{listed(o)} +std +delta")
    if form == "single":
        yield in_turn(f"{gradient(o)} +std +delta -grad")


def rmsprop(o: Options, form: Implementation) -> Iterator[Section]:
    """torch/optim/rmsprop.py:265-470: avg, centred or not."""
    if form == "foreach":
        yield together(f"{listed(o)} +avg")
    if form == "single":
        yield in_turn(f"{gradient(o)} +avg -grad")


def nadam(o: Options, form: Implementation) -> Iterator[Section]:
    """torch/optim/nadam.py:281-610; capturable multiplies tensors where the default passes numbers to addcdiv."""
    if form == "foreach":
        corrected = (
            "+mu:1f +first:1f +second:1f -mu +power:1f -power +difference:1f -difference +product:1f -product +update -root"
            if o.capturable
            else ""
        )
        yield together(f"{listed(o)} +root {corrected} -grad -root -first -second -update")
    if form == "single" and not o.capturable:
        yield in_turn(f"{gradient(o)} +quotient +root -quotient")
    elif form == "single":
        first, *decay = gradient(o).split()
        # beta1 * (1 - 0.5 * 0.96 ** (step * momentum_decay)), and the same a step later
        mu = "+a:1f +b:1f -a +a:1f -b +b:1f -a +mu:1f -b"
        mu_next = "+a:1f +b:1f -a +a:1f -b +b:1f -a +a:1f -b +mu_next:1f -a"
        yield in_turn(
            f"{first} -exp_avg +power:1f +bias2:1f -power {' '.join(decay)} {mu} {mu_next} +quotient +root -quotient -denom"
            " +denom -root +next:1f +a:1f +b:1f -a +c:1f +d:1f -b -c +grad -d +b:1f +c:1f +d:1f -b -c +exp_avg -d"
        )


def radam(o: Options, form: Implementation) -> Iterator[Section]:
    """torch/optim/radam.py:256-563, in the rectified regime (from step 6 with the default betas)."""
    if form == "foreach" and not o.capturable:
        yield together(f"{listed(o)} -grad +root -root")
    elif form == "foreach":
        yield together(f"{listed(o)} +power1:1f +power2:1f -grad +rho:1f +rho_2:1f -rho_2 +scaled:1f -scaled")
        yield together("+rect:1f -rho +unrect:1f +bias1:1f -power1 +bias2:1f -power2 -rect -bias1 +root -bias2 -unrect -root")
    elif form == "single" and not o.capturable:
        # corrected, its product with lr, sqrt, reciprocal, quotient, and the two products on the way to the update
        yield in_turn(
            f"{gradient(o)} +corrected +scaled +root +inverse +quotient -inverse -root +product -scaled -quotient"
            " +update -product -update"
        )
    elif form == "single":
        rho = (
            "+a:1f +b:1f +c:1f -a -b +a:1f -c +rho:1f -a +gt:1b +a:1f +b:1f +c:1f -a -b +a:1f -c +b:1f +c:1f -a -b +rect:1f -c"
        )
        yield in_turn(
            f"{gradient(o)} +a:1f +bias1:1f -a +a:1f +bias2:1f -a +corrected {rho} +root +a:1f +quotient -a -root"
            " +both -rect -quotient +one:1f +where -one -gt -both =update:where +scaled +step -scaled -step"
        )


def adamax(o: Options, form: Implementation) -> Iterator[Section]:
    """torch/optim/adamax.py:226-420: |grad|, in the gradient's copy under foreach; a denominator if capturable."""
    if form == "foreach":
        magnitude = "" if listed(o) else "+grad"
        yield together(f"{listed(o)} {magnitude} {'+bias:1f +denom' if o.capturable else ''}")
    if form == "single":
        denominator = "+power:1f +neg_bias:1f -power +denom" if o.capturable else ""
        yield in_turn(f"{gradient(o)} +magnitude -magnitude {denominator} -grad")


def rprop(o: Options, form: Implementation) -> Iterator[Section]:
    """torch/optim/rprop.py:223-408: signs of the products, and masks of one byte an element for one tensor at a time."""
    chosen = "+chosen -value -mask -chosen" if o.capturable else "-value -mask"
    masks = f"+mask:nb +value:1p {chosen} " * 3
    cleared = "+mask:nb +value:1p +cleared -value -mask -cleared"
    if form == "foreach":
        yield together("+products")
        yield in_turn(masks)
        yield in_turn(cleared)
        yield together("-products +sign -sign")  # a loop's variable keeps the last product, which is less than a mask was
    if form == "single":
        yield in_turn(
            f"{'+grad' if o.maximize else '-grad'} +product +sign -product {masks} +clone =grad:clone"
            f" +mask:nb +value:1p {chosen} +step -step -grad"
        )


def asgd(o: Options, form: Implementation) -> Iterator[Section]:
    """torch/optim/asgd.py:197-420; before t0 steps (a million by default) the average is a copy."""
    if form == "foreach":
        # decayed and maximized, the sum with lambd is made in the copy
        intermediate = "" if decayed(o) and o.maximize else "+intermediate -intermediate"
        scalars = "+mus:1f -mus +etas:1f" if o.capturable else "+etas:1f +mus:1f"
        yield together(f"{'+grad' if o.maximize else ''} {intermediate} +intermediate -intermediate {scalars}")
    if form == "single":
        averages = "+difference -difference" if o.capturable or o.t0 < 1 else ""
        decay, eta = "", ""
        if o.capturable:
            decay = "+a:1f +b:1f -a -b"  # 1 - lambd * eta
            # lr / (1 + lambd * lr * step) ** alpha and 1 / max(step - t0, 1)
            eta = "+a:1f +b:1f -a +c:1f -b +d:1f +e:1f -d -c -e +a:1f +one:1f +b:1f -a -one +c:1f +d:1f -c -b -d"
        yield in_turn(f"{gradient(o)} {decay} {averages} {eta} -grad")


def adafactor(o: Options, form: Implementation) -> Iterator[Section]:
    """torch/optim/_adafactor.py:330-600: the estimate of the variance, and the means or the squares it is made from.

    Over lists, matrices and vectors are lists of their own (_group_tensors_by_device_dtype_and_is_multidim).
    """
    grad = "+grad" if o.maximize else ""
    norm = "+norm:1p %n -norm"

    def single(p: Param) -> str:
        if p.ndim > 1:
            means = "+row:rg %r +col:cg %c +estimate:ng +mean:sg %v -mean -update =update:estimate"
        else:
            means = "+square:ng +estimate:ng -update =update:estimate"
        return f"{grad} {norm} {means} {norm.replace('p', 'g')}"

    def lists(p: Param) -> str:
        if p.ndim > 1:
            return f"{grad} +row:rg%r -row +col:cg%c -col +fresh:ng +mean:sg%v -mean -updates =updates:fresh"
        return f"{grad} +square:ng -square +fresh:ng -updates =updates:fresh"

    if form == "single":
        yield in_turn(single)
    else:
        yield together("-grad +grad:ng" if o.maximize else "")
        yield in_turn(norm)
        yield together(lambda p: lists(p).removeprefix(grad))
        yield in_turn(norm.replace("p", "g"))


def factors(p: Param) -> tuple[Count, Count]:
    """Elements of Adafactor's row and column statistics, which fold the last two dimensions (_adafactor.py:98-107)."""
    if p.ndim < 2:
        return 0, 0
    stack = product(p.shape[:-2])
    return stack * p.shape[-2], stack * p.shape[-1]


def muon(o: Options, form: Implementation) -> Iterator[Section]:
    """torch/optim/_muon.py:31-75 and 308-340: the iterate, the next one, and two matrices of the smaller side squared."""

    def gram(p: Param) -> Count:
        return 2 * minimum(p.shape[0], p.shape[1]) * minimum(p.shape[0], p.shape[1])  # bfloat16 whatever the gradient

    def cast(p: Param) -> Count:
        return 0 if p.grad_dtype == "bfloat16" else 2 * p.numel

    turn = "+gram:gram =held:gram +product:gram =poly:product +next:nh =update:next "
    nesterov = "+nesterov:ng" if o.nesterov else ""
    end = "-held -poly" if o.ns_steps else ""
    first = "-update +first:cast =update:first +norm:1h %n +clamped:1h -norm -clamped"
    yield in_turn(f"{nesterov} {first} {turn * o.ns_steps} {end} -nesterov", gram=gram, cast=cast)
