"""Energy, CO2e and cloud cost of a computation (APQ, Table 2, after Strubell et al., 2019)."""

from typing import NamedTuple

POUNDS_PER_KILOGRAM = 2.20462


class Rates(NamedTuple):
    """Rates of an hour of computation.

    Attributes:
      watts: power of the computer. 188 W reproduce APQ's 56.72 lbs of CO2e for 200 GPU hours (Table 2).
      power_usage: power of the data centre over that of its computers (Strubell et al., 2019: 1.58, the mean of 2018).
      kilograms_per_kilowatt_hour: CO2e per kWh (Strubell et al., 2019: 0.954 lbs, the mean of the U.S. in 2018).
      dollars_per_hour: lowest and highest price (APQ, Table 2: $148 to $496 for 200 hours).
    """

    watts: float = 188.2
    power_usage: float = 1.58
    kilograms_per_kilowatt_hour: float = 0.954 / POUNDS_PER_KILOGRAM
    dollars_per_hour: tuple[float, float] = (0.74, 2.48)


class Footprint(NamedTuple):
    """Energy in kilowatt-hours, CO2e in kilograms, and the lowest and highest price in dollars."""

    kilowatt_hours: float
    co2e_kilograms: float
    dollars: tuple[float, float]


def footprint(seconds: float, rates: Rates) -> Footprint:
    """The footprint of a computation that takes `seconds`.

    Raises:
      ValueError: seconds or a rate is negative.
    """
    if seconds < 0 or min(*rates[:3], *rates.dollars_per_hour) < 0:
        raise ValueError(f"{seconds} seconds at {rates}: expected no negative numbers")
    hours = seconds / 3600
    energy = hours * rates.watts / 1000 * rates.power_usage
    low, high = rates.dollars_per_hour
    return Footprint(energy, energy * rates.kilograms_per_kilowatt_hour, (hours * low, hours * high))
