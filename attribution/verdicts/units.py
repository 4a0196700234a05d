"""What a unit measures and how much of it: "mph" and "kilometres per hour" are the same dimension.

A dimension is a word of ours, or two with a stroke where one is divided by the other.
"""

import re
from typing import Final

# Of each dimension: its units' names, then a colon and the factor to its base; "_" stands for a space.
_TABLES: Final = {
    "time": "ns nanosecond nanoseconds:0.000000001 µs μs microsecond microseconds:0.000001 "
    "ms millisecond milliseconds msec:0.001 s sec secs second seconds:1 min mins minute minutes:60 "
    "h hr hrs hour hours:3600 day days:86400 week weeks wk wks:604800 month months:2629800 "
    "year years yr yrs:31557600 decade decades:315576000 century centuries:3155760000 "
    # German, Dutch, French, Spanish, Italian, Russian; words that are English ones, too, are left out
    "sekunde sekunden seconden seconde secondes segundo segundos secondi секунда секунды секунд:1 "
    "minuten minuto minutos minuti минута минуты минут:60 "
    "stunde stunden uur heure heures hora horas час часа часов:3600 "
    "tage tagen dagen jour jours día días giorno giorni день дня дней:86400 "
    "woche wochen weken semaine semaines semana semanas settimane неделя недели недель:604800 "
    "monat monate monaten maanden mois meses mesi месяц месяца месяцев:2629800 "
    "jahr jahre jahren jaar jaren ans année années año años anni год года лет:31557600",
    "length": "mm millimeter millimeters millimetre millimetres:0.001 cm centimeter centimeters centimetre "
    "centimetres:0.01 m meter meters metre metres:1 km kilometer kilometers kilometre kilometres:1000 "
    "inch inches:0.0254 ft foot feet:0.3048 yd yard yards:0.9144 mi mile miles:1609.344 "
    "nautical_mile nautical_miles:1852 light_year light_years:9.4607304725808e15",
    "mass": "mcg µg μg microgram micrograms:0.000001 mg milligram milligrams:0.001 g gram grams:1 "
    "kg kilogram kilograms kilo kilos:1000 "
    "oz ounce ounces:28.349523125 lb lbs pound pounds:453.59237 tonne tonnes:1000000",
    "area": "square_inch square_inches sq_in:0.00064516 square_foot square_feet sq_ft sqft ft²:0.09290304 "
    "square_yard square_yards:0.83612736 square_meter square_meters square_metre square_metres m²:1 "
    "square_kilometer square_kilometers square_kilometre square_kilometres km²:1000000 "
    "square_mile square_miles sq_mi:2589988.110336 acre acres:4046.8564224 hectare hectares:10000",
    "volume": "ml milliliter milliliters millilitre millilitres:0.001 l liter liters litre litres:1 "
    "cup cups:0.2365882365 tbsp tablespoon tablespoons:0.01478676478125 "
    "tsp teaspoon teaspoons:0.00492892159375 gallon gallons:3.785411784 quart quarts:0.946352946 "
    "pint pints:0.473176473 fluid_ounce fluid_ounces fl_oz:0.0295735295625 "
    "cubic_foot cubic_feet ft³:28.316846592 cubic_meter cubic_meters cubic_metre cubic_metres m³:1000",
    "length/time": "mph:0.44704 kmh kph:0.277777777778 knot knots:0.514444444444",
    "pressure": "hpa mbar millibar millibars:100 kpa:1000 mpa:1000000 psi:6894.757293168 bar:100000",
    "data": "byte bytes:1 kb:1000 mb:1000000 gb:1000000000 tb:1000000000000 pb:1000000000000000 "
    "kib:1024 mib:1048576 gib:1073741824 tib:1099511627776",
    "data rate": "kbps kbit/s:1000 mbps mbit/s:1000000 gbps gbit/s:1000000000",
    "percent": "% ％ ٪ percent percents prozent процентов:1",
    "frequency": "hz:1 khz:1000 mhz:1000000 ghz:1000000000",
    "rotation": "rpm:1",
    "sound": "db decibel decibels:1",
    "voltage": "millivolt millivolts:0.001 v volt volts:1 kv kilovolt kilovolts:1000",
    "current": "milliamp milliamps milliampere milliamperes:0.001 amp amps ampere amperes:1",
    "charge": "mah:0.001 ah:1",
    "energy": "wh:1 kwh kilowatt-hour kilowatt-hours kilowatt_hour kilowatt_hours:1000 mwh:1000000",
    "food energy": "calorie calories kcal kilocalorie kilocalories:1",  # on plates both mean the same
    "power": "hp horsepower:745.699871582 w watt watts:1 kw kilowatt kilowatts:1000 "
    "mw megawatt megawatts:1000000",
    "celsius": "°c celsius:1",
    "fahrenheit": "°f fahrenheit:1",
    "degree": "° degree degrees:1",
    "money usd": "dollar dollars usd:1 cent cents:0.01",
    "money eur": "€ euro euros eur:1",
    "money gbp": "£ gbp:1",
    "money chf": "chf franken:1",
    "money jpy": "yen jpy:1",
    "money inr": "₹ inr rupee rupees:1",
    "money rub": "₽ rub руб рубль рубля рублей:1",
    "money pln": "zł pln:1",
    "money sek": "sek:1",
    "money cny": "cny yuan:1",
    "money krw": "krw:1",
}


def _read_tables() -> dict[str, tuple[str, float]]:
    units: dict[str, tuple[str, float]] = {}
    for dimension, table in _TABLES.items():
        names: list[str] = []
        for word in table.split():
            name, _, factor = word.partition(":")
            names.append(name.replace("_", " "))
            if factor:
                units |= dict.fromkeys(names, (dimension, float(factor)))
                names = []
    return units


UNITS: Final = _read_tables()  # by name in small letters: dimension, and factor to its base unit
UNIT: Final = "|".join(re.escape(name) for name in sorted(UNITS, key=len, reverse=True))
