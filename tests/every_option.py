"""Rules with every value of every option: which there are, and with what else each can be built."""

import dataclasses

from signcore.rule import classes

CLASSES = classes()
# Without which some value of an option is refused.
PREREQUISITES = [{}, {"momentum": 0.9}, {"form": "heavy_ball"}, {"gamma_max": 1e-3}]


def buildable(cls, **options):
    """The rule, or None where its checks refuse."""
    try:
        return cls(**options)
    except (TypeError, ValueError):
        return None


def numbers_for_all(cls):
    """lr, and decay where the rule has any."""
    decays = buildable(cls, weight_decay=0.1, lr=0.01) is not None
    return {"lr": 0.01} | ({"weight_decay": 0.1} if decays else {})


def variants():
    """Every rule with its defaults, and few more in which each value of each option occurs that its checks accept.

    One value after the other is added to the first variant that can be built with it, so that there are about as many
    variants as the option with the most values has, and not the sum of all.
    """
    found = {}
    for name, cls in CLASSES.items():
        found[name] = cls(**numbers_for_all(cls))
        fields = {field.name: field for field in dataclasses.fields(cls)}
        wanted = [
            (field.name, choice)
            for field in fields.values()
            if field.name != "nonfinite"
            for choice in field.metadata.get("choices", ())
            if choice != field.default
        ]
        wanted += [(name, value) for name, value in {"momentum": 0.9, "dampening": 0.3}.items() if name in fields]
        count = 0
        while wanted:
            count += 1
            chosen = {}
            for option, choice in list(wanted):
                for more in PREREQUISITES:
                    options = {**numbers_for_all(cls), **more, **chosen, option: choice}
                    if option not in chosen and buildable(cls, **options) is not None:
                        chosen |= {**more, **chosen, option: choice}
                        wanted.remove((option, choice))
                        break
            assert chosen, f"{name} cannot be built with any of {wanted}"
            found[f"{name}-{count}"] = cls(**numbers_for_all(cls), **chosen)
    return found


VARIANTS = variants()
# What a number is changed to; any other is a third smaller, or .2 where it is 0.
CHANGED = {"lr": 0.003, "weight_decay": 0.07, "eps": 0.004, "eta_plus": 1.4, "eta_minus": 0.3}


def other_number(rule, name):
    old = getattr(rule, name)
    return CHANGED.get(name, 0.7 * old if old else 0.2)


# Of what is neither a number nor a choice: another value. A new rule's static numbers are entered here.
STATIC = {
    "seed": 1,
    "d0": 0.25,
    "gamma_max": 1e-4,
    "lr_max": 1e-4,
    "update_gap": 2,
    "warmup_steps": 2,
    "switch_step": 2,
    "switch_epoch": 1,
    "steps_per_epoch": 2,
}
# Beside which of these a value may matter, if not beside the defaults.
BESIDE = [
    *PREREQUISITES,
    {"sign_zero": "random"},
    {"warmup_steps": 2},
    {"switch_step": 2},
    {"switch_step": 2, "momentum": 0.9},
    {"switch_epoch": 1, "steps_per_epoch": 2},
    {"dithered": True},
    {"relative": True},
    {"two_sided": True},
    {"tolerance": 0.5},
]


def options():
    for name, cls in CLASSES.items():
        for field in dataclasses.fields(cls):
            choices = field.metadata.get("choices")
            if choices is not None:
                yield from ((name, field.name, choice) for choice in choices if choice != field.default)
            elif "range" in field.metadata:
                yield name, field.name, other_number(VARIANTS[name], field.name)
            else:
                yield name, field.name, STATIC[field.name]
