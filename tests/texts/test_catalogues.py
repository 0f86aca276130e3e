"""Message catalogues as a text.

Trusted: Python's own gettext, which looks a message up in a catalogue; babel, which writes one.
"""

import gettext
import io
from importlib import metadata
from pathlib import Path

import pytest
from babel.messages import Catalog
from babel.messages.mofile import write_mo

from reptrace.texts import catalogues, corpora


def installed(language):
    return next(Path(file.locate()) for file in metadata.files("sphinx")
                if str(file).endswith(f"locale/{language}/LC_MESSAGES/sphinx.mo"))


@pytest.mark.parametrize("language", ["fr", "ja", "pt_BR"])
def test_every_message_of_an_installed_catalogue_is_the_one_that_python_looks_up(language):
    path = installed(language)
    with path.open("rb") as file:
        trusted = gettext.GNUTranslations(file)
    found = list(catalogues.messages(path.read_bytes()))
    assert len(found) > 500
    for original, translations in found:
        plural = len(translations) > 1
        assert translations[0] == (trusted.ngettext(original, "", 1) if plural else trusted.gettext(original))


def written(tmp_path, language, messages):
    book = Catalog(language)
    for original, translation in messages.items():
        book.add(original, translation)
    buffer = io.BytesIO()
    write_mo(buffer, book)
    path = tmp_path / language / "LC_MESSAGES" / "some.mo"
    path.parent.mkdir(parents=True)
    path.write_bytes(buffer.getvalue())
    return path


def test_documents_hold_the_translations_that_follow_each_other_and_nothing_else(tmp_path):
    path = written(tmp_path, "de", {"a": "erste Zeile", "b": "b", "c": "dritte Zeile", "d": "vierte", "e": "Rest",
                                    ("f", "fs"): ("eins", "viele")})
    assert catalogues.documents(path, 22) == ["erste Zeile\ndritte Zeile"]
    assert catalogues.documents(path, 12) == ["erste Zeile\ndritte Zeile", "vierte\nRest\neins\nviele"]
    assert catalogues.language(path) == "de"


def test_english_catalogues_have_no_documents_and_other_files_are_refused(tmp_path):
    assert catalogues.documents(written(tmp_path, "en_GB", {"color": "colour of the thing"}), 5) == []
    with pytest.raises(ValueError, match=r"not a message catalogue \(\.mo\)"):
        list(catalogues.messages(b"msgid \"\"\n"))
    whole = written(tmp_path, "de", {"a": "eine Zeile"}).read_bytes()
    for cut in (6, 24, len(whole) - 4):
        with pytest.raises(ValueError, match="cut short"):
            list(catalogues.messages(whole[:cut]))


def test_the_text_is_of_many_languages_and_enough_for_a_probe():
    found = corpora.open_text("catalogues")
    assert found.name == "catalogues" and len(found.documents) > 2000
    assert len({catalogues.language(path) for path in corpora._files_of("sphinx", ".mo")}) > 40
    assert min(map(len, found.documents)) >= 200
