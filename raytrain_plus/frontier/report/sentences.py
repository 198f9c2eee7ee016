"""What a sweep's report says in sentences, on the page and in Markdown."""

from collections import Counter

from raytrain_plus.frontier.report import wording
from raytrain_plus.frontier.report.contributions import Contributions
from raytrain_plus.frontier.report.findings import Findings, Standing
from raytrain_plus.observe.quantities import number


def sentence(found: Findings) -> str:
    """Return the result in a sentence or two."""
    complete = sum(trial.outcome == "complete" for trial in found.trials)
    if not complete:
        live = found.account.under_way
        return "No trial has run to its end yet" + (f"; {live} are under way." if live else ".")
    winner = found.winner
    begun = f"{wording.count(complete, 'complete trial')} of {_recipes(found)}: "
    if winner is None:
        return begun + "nothing stands out."
    label, speed_up = wording.label(winner), winner.speed_up
    if speed_up is None or not winner.beats_baseline:
        told = f"the best is {label} at {winner.point.recipe.duration}"
        if any(row.speed_up is not None for row in found.frontier):
            told += "; no recipe is faster than the baseline to the same quality so far"
        return f"{begun}{told}."
    known = f"({wording.factor_interval(speed_up)})"
    times = f"{wording.factor(speed_up).removesuffix(' x')} times as fast"
    if speed_up.bound == "more than":
        return f"{begun}{label} is better than the longest baseline, and {times} {known}."
    return f"{begun}{label} reaches the baseline's quality {times} {known}."


def remarks(found: Findings) -> list[str]:
    """Return what is to be known of the list of recipes on the frontier."""
    said = []
    if found.dominated:
        clear = (
            "is clearly dominated by another" if found.dominated == 1 else "are clearly dominated"
        )
        said.append(f"{wording.count(found.dominated, 'recipe')} besides {clear}.")
    if found.unproven:
        said.append(
            f"{wording.count(found.unproven, 'recipe')} besides, most of one seed, cannot be told "
            "from these and are not listed."
        )
    if len(found.baseline) < 2:
        said.append("Without the baseline at two durations there is no curve to compare with.")
    elif found.points and min(len(point.seeds) for point in found.baseline) < 2:
        said.append(
            "The baseline has one seed at some duration: there are no intervals without two."
        )
    if found.noise.freedom:
        said.append(
            f"Seeds alone change {found.objective.metric} by {number(found.noise.quality)} and "
            f"cost by {found.noise.cost:.1%} (standard deviations, with {found.noise.freedom} "
            "degrees of freedom)."
        )
    return said


def contribution_notes(found: Findings) -> list[str]:
    """Return what is to be known of the contributions."""
    told, said = found.contributions, []
    if told.alone or told.pairs:
        metric = found.objective.metric
        measure = (
            f"{metric} beyond the baseline's at equal cost"
            if told.at_equal_cost
            else f"{metric}, whatever it cost, since there is no curve of the baseline"
        )
        said.append(
            f"Measured in {measure}; above zero is better. From "
            f"{wording.count(told.trials, 'trial')}{_at(told)} that can be compared with others of "
            "the same duration, seed and settings. p is corrected for how many were looked at "
            "(Holm)."
        )
    hurting = [
        " + ".join(one.aspects)
        for one in told.alone
        if one.effect is not None and one.effect.verdict == "hurts"
    ]
    if hurting:
        said.append(f"On its own hurts: {', '.join(hurting)}.")
    if told.beyond:
        said.append(
            f"{wording.count(told.beyond, 'trial')} cost less or more than any baseline and cannot "
            "be compared at equal cost."
        )
    reasons_why = Counter(told.unknown.values())
    said += [f"{wording.count(n, 'effect')} unknown: {why}." for why, n in reasons_why.items()]
    return said


def _at(told: Contributions) -> str:
    return f" at {told.duration}" if told.duration else ""


def reference_words(found: Findings) -> str:
    """Return beyond what the hypervolume is counted."""
    if found.reference is None:
        return ""
    cost, quality = found.reference
    return (
        f"The hypervolume is the area that the means of all recipes cover: below {number(cost)} "
        f"device-seconds (twice the dearest baseline), and better than {number(quality)} (the "
        "worst baseline). It may fall where further seeds take back what one was lucky with."
    )


def picked(row: Standing) -> str:
    """Return why a recipe is the one to train."""
    if row.speed_up is None:
        return "The best in quality."
    return (
        "The one that is most surely fast among those that reach the longest baseline's quality, "
        "or, where none does, among all. The intervals are its own: that it was picked among many "
        "is not in them."
    )


def _recipes(found: Findings) -> str:
    durations = len({point.recipe.duration for point in found.points})
    recipes = wording.count(len(found.points), "recipe")
    return f"{recipes} at {wording.count(durations, 'duration')}"
