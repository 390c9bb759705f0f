"""Detection of personal data, by the names of columns and by the form of values."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

PersonalKind = Literal[
    "e-mail",
    "IP address",
    "card",
    "bank account",
    "identity number",
    "credential",
    "phone",
    "birth",
    "person's name",
    "address",
    "sensitive",
]

_WORD = re.compile(r"[^\W\d_]+")
_HUMP = re.compile(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

_PERSONS = (
    "(customer|client|cliente|kunde|contact|kontakt|contacto|employee|employe|empleado|staff"
    "|mitarbeiter|user|usuario|utilisateur|member|mitglied|miembro|person|people|persona|patient"
    "|guest|student|teacher|driver|passenger|applicant|candidate|subscriber|owner|recipient"
    "|holder|author|manager|buyer|doctor)(s|n|es)?"
)
_NAME = "(name|nom|nombre|nome|naam)s?"

# Patterns over a name's words, each between two underscores. The first match decides.
_NAMES: Sequence[tuple[PersonalKind, str]] = (
    ("e-mail", r"_e?_?mails?(_?addr(ess)?)?_|_(courriel|correo)_|_email"),
    ("IP address", r"_ip(_?v)?(_?addr(ess)?)?_|_remote_addr(ess)?_"),
    (
        "card",
        r"_(credit|debit|kredit)_?(card|karte)|_card_?(number|no|num|nr|holder|code)_"
        r"|_cc_?(number|num|no|nr)_|_(cvv|cvc|pan)_|_tarjeta_|_carte_bancaire_",
    ),
    (
        "bank account",
        r"_iban_|_bank_?(account|konto)|_account_(number|no|num|nr)_|_konto_?(nummer|nr)_"
        r"|_cuenta_bancaria_",
    ),
    (
        "identity number",
        r"_(ssn|cpf|dni|nif|curp|bsn|pesel|nino|aadhaar|passport|personnummer)_|_passport_?(no|nr"
        r"|num|number|id)_|_social_(security|insurance)_|_national_?(id|identity|insurance)_"
        r"|_tax_?(id|number|no)_|_sozialversicherung|_steuer_?(id|nummer|nr)_|_ausweis"
        r"|_codice_fiscale_|_driv(er|ers|ing)_?licen[cs]e|_id_?card_",
    ),
    (
        "credential",
        r"_(password|passwd|passwort|kennwort|pwd|contrasena|mot_de_passe|secret|api_?key)_"
        r"|_(access|refresh|auth)_?token_|_password_?(hash|salt)_",
    ),
    (
        "phone",
        r"_(tele|cell|mobile)?_?phones?(_?(number|no|num|nr))?_|_telef[oa]n[oa]?e?(_?(nummer|nr))?_"
        r"|_(tel|fax|mobile|mobil|handy|movil|msisdn|whatsapp)_|_(contact|mobile|cell)_?number_",
    ),
    (
        "birth",
        r"_(birth|birthday|birth_?date|dob)_|_date_?of_?birth_|_geburt|_naissance_|_nascita_"
        r"|_nacimiento_|_geboorte",
    ),
    (
        "person's name",
        r"_(first|last|full|given|family|middle|maiden|birth|sur|fore|nick|user|vor|nach|familien"
        r"|benutzer)_?names?_|_(voor|achter)_?naam_|_(prenom|apellidos?|cognome|sobrenome|efternamn"
        rf"|fornamn)_|_{_PERSONS}_?{_NAME}_",
    ),
    (
        "address",
        r"_(addr|address|addresses|adresse|adres|direccion|indirizzo|endereco|street|strasse|calle"
        r"|rue|postcode|zip|plz|postleitzahl|codigo_postal|code_postal)_|_(street|ship|home|bill|bill"
        r"ing|shipping|postal)_?address_|_(post|postal|zip)_?code_|_house_?(number|no|nr)_"
        r"|_hausnummer_",
    ),
    (
        "sensitive",
        r"_(gender|sex|geschlecht|religion|ethnicity|nationality|diagnosis|disability|salary|gehalt"
        r"|sueldo|salaire)_|_marital_?status_",
    ),
)
_BY_NAME = tuple((kind, re.compile(pattern)) for kind, pattern in _NAMES)
_PERSON_TABLE = re.compile(rf"_{_PERSONS}_$")
_BARE_NAME = re.compile(rf"_{_NAME}_")
# Last words of names of columns that describe personal data and do not contain it.
_DESCRIPTIVE = re.compile(
    r"_(type|kind|ids?|count|verified|valid|format|template|provider|domain)_$"
)

_MOMENTS = frozenset({"date", "timestamp", "timestamptz"})
_NUMBERS = frozenset({"int2", "int4", "int8", "numeric"})
_NUMERIC_KINDS = frozenset(
    {"card", "bank account", "identity number", "phone", "birth", "sensitive"}
)
_IMPERSONAL_TYPES = frozenset(
    {"bool", "float4", "float8", "time", "timetz", "interval", "oid", "uuid"}
)


def words(name: str) -> list[str]:
    """The words of an identifier in lower case, without accents and digits."""
    plain = unicodedata.normalize("NFKD", _HUMP.sub("_", name)).casefold()
    return _WORD.findall("".join(c for c in plain if not unicodedata.combining(c)))


def kind_by_name(table: str, column: str, type_name: str) -> PersonalKind | None:
    """The kind of personal data that a column contains, judged by its name; None if none.

    Args:
        table: the table's name; in a table of persons the column ``name`` is a person's name.
        column: the column's name.
        type_name: the name of its type, as in `bronze.postgres.catalog.types.SourceType`; for an
            array the type of the elements.
    """
    joined = f"_{'_'.join(words(column))}_"
    for kind, pattern in _BY_NAME:
        if pattern.search(joined):
            descriptive = kind != "identity number" and _DESCRIPTIVE.search(joined)
            return kind if _type_fits(kind, type_name) and not descriptive else None
    if _BARE_NAME.fullmatch(joined) and _PERSON_TABLE.search(f"_{'_'.join(words(table))}_"):
        return "person's name" if _type_fits("person's name", type_name) else None
    return None


def _type_fits(kind: PersonalKind, type_name: str) -> bool:
    if type_name in _MOMENTS:
        return kind == "birth"
    if type_name in _NUMBERS:
        return kind in _NUMERIC_KINDS
    return type_name not in _IMPERSONAL_TYPES


_EMAIL = re.compile(r"[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b")
_IBAN = re.compile(r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")
_CARD = re.compile(r"[3-6]\d{3}(?:[ -]?\d){9,15}")
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")
_PHONE = re.compile(r"(?:\+|\(|0(?!00))[\d\s().\-/]{6,20}|\d{3}[-. ]\d{3}[-. ]\d{4}")
_DATE = re.compile(r"\d{4}[-/.]\d\d?[-/.]\d\d?.*|\d\d?[-/.]\d\d?[-/.]\d{2,4}")
_PHONE_DIGITS = range(7, 16)


def _is_iban(value: str) -> bool:
    text = value.upper()
    if not _IBAN.fullmatch(text):
        return False
    text = text.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def _is_card(value: str) -> bool:
    if not _CARD.fullmatch(value):
        return False
    digits = [int(c) for c in value if c.isdecimal()]
    doubled = [sum(divmod(2 * d, 10)) if i % 2 else d for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_phone(value: str) -> bool:
    digits = sum(c.isdecimal() for c in value)
    return digits in _PHONE_DIGITS and bool(_PHONE.fullmatch(value)) and not _DATE.fullmatch(value)


# (kind, test of a value, share of values that must pass). Nothing else has the form of an e-mail
# address, so a few of them within longer texts are enough.
_BY_CONTENT: Sequence[tuple[PersonalKind, Callable[[str], object], float]] = (
    ("e-mail", _EMAIL.search, 0.01),
    ("IP address", _IPV4.fullmatch, 0.5),
    ("bank account", _is_iban, 0.2),
    ("card", _is_card, 0.5),
    ("phone", _is_phone, 0.5),
)


def kind_by_content(values: Sequence[str]) -> PersonalKind | None:
    """The kind of personal data that a column contains, judged by its values; None if none."""
    filled = [value.strip() for value in values if value.strip()]
    for kind, test, share in _BY_CONTENT:
        passed = sum(1 for value in filled if test(value))
        if passed and passed >= share * len(filled):
            return kind
    return None
