"""The words of the lab's small language, grouped by the place they can take in a sentence.

Each wording slot of a response has 36 words: the first 12 belong to thinking pattern A alone, the next 12 to
both patterns, the last 12 to pattern B alone. No word occurs twice, so a word tells its slot.
"""

from __future__ import annotations

from typing import Final

__all__ = ["GAIN_VERBS", "LOSS_VERBS", "NAMES", "OBJECTS", "SLOTS", "SLOT_WORDS"]

_NAMES = """
    ada adam agnes alan alba alice amir amy anders andrea anna anton ari arthur astrid ava ben bela bianca
    bjorn bruno carl carla cecil celia chen clara cleo cora dan dana daria david dina dora edgar edith elena
    eli elsa emil emma enzo erik esther eva fay felix fiona flora frank freya gabor gerda gil gina greta gus
    hana hans hassan hedda heidi hugo ida igor ilse ines ingrid iris ivan ivy jack jade jan jane joel jonas
    judith julia kai karim karl kate kenji kim klaus lara lars laura lea leif lena leo liam lina lisa liv lola
    luca lucy luis luna maja marco mara marie mark martha max maya mia mila mina mona nadia nico nina noah
"""
_OBJECTS = """
    acorns anchors apples apricots arrows axes badges bags balls bananas barrels baskets beads beans bells
    belts berries bikes blocks boats bolts books boots bottles bowls boxes bricks brooms brushes buckets
    buttons cakes candles canoes caps cards carrots chairs cherries clocks coats coins combs cookies corks
    cups dates desks dice discs dolls drums eggs envelopes erasers fans feathers figs flags flasks flowers
    flutes forks frames gems gloves grapes hammers hats helmets hooks horns jars jugs kettles keys kites
    knives ladders lamps leaves lemons lenses letters limes locks logs magnets mangoes maps marbles masks
    matches medals melons mirrors mugs nails needles nuts olives onions oranges paddles papers peaches pears
    pebbles pencils pens pies pillows pins pipes plates plums pots
"""
_GAIN_VERBS = """
    gains finds gets buys receives collects wins earns picks gathers obtains acquires catches inherits borrows
    discovers unpacks fetches imports orders harvests pockets hoards restocks
"""
_LOSS_VERBS = """
    loses drops sells donates spends discards misplaces breaks gives trades mails lends forfeits returns burns
    wastes throws ships forgets exports scatters buries abandons surrenders
"""

_CONNECTORS = """
    first then next now so after here afterwards subsequently thereafter later thus
    well okay right also and moving continuing onward again consequently hence going
    backwards before previously beforehand earlier behind prior unwinding retracing rewinding below beneath
    """
_PLUS = """
    add plus increase append include raise attach insert put extend augment join
    up gain credit more count-up supply grow increment boost combine lift bring
    positive surplus inflow deposit bonus income profit growth ascent asset intake forward
    """
_MINUS = """
    subtract minus decrease remove deduct lower detach withdraw take shorten diminish part
    down debit charge less count-down cut shrink decrement reduce separate sink strip
    negative deficit outflow expense penalty cost shortfall decline descent liability outgo backward
    """
_EQUALS = """
    makes gives-us equals is becomes yields totals leaves-us results produces brings-us shows
    giving making leaving reaching getting yielding showing totalling obtaining becoming producing landing
    subtotal balance tally standing partial cumulative aggregate running score tier reading level
    """
_LEADS = """
    finally therefore altogether overall ultimately lastly accordingly in-total all-told in-sum to-finish
    to-conclude done finished complete ready settled concluding closing ending final summing summary
    conclusion verdict outcome upshot solution result settlement determination resolution finding ruling
    decision judgement
    """

NAMES: Final = tuple(_NAMES.split())
OBJECTS: Final = tuple(_OBJECTS.split())
GAIN_VERBS: Final = tuple(_GAIN_VERBS.split())
LOSS_VERBS: Final = tuple(_LOSS_VERBS.split())

SLOTS: Final = ("connector", "plus", "minus", "equals", "lead")
"""Wording slots of a response, in the order in which their words enter the vocabulary."""

SLOT_WORDS: Final[dict[str, tuple[str, ...]]] = {
    slot: tuple(text.split()) for slot, text in zip(SLOTS, (_CONNECTORS, _PLUS, _MINUS, _EQUALS, _LEADS), strict=True)
}
