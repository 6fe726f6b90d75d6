"""Media types: names know no case, quotes and blanks do not matter, preferences are compared as numbers."""

from __future__ import annotations

import pytest

from pipeline.serving.errors import RequestError
from pipeline.serving.media import accepts_json, boundary, parse
from tests.unit.serving.asgi import ask, form


@pytest.mark.parametrize(
    "value",
    [
        "multipart/form-data; boundary=b",
        "Multipart/Form-Data; boundary=b",
        "MULTIPART/FORM-DATA;BOUNDARY=b",
        'multipart/form-data ;\tboundary="b"',
        " multipart/form-data; charset=UTF-8; boundary=b",
        "multipart/form-data; boundary=b; charset=base64",
        'multipart/form-data; note="a; boundary=c"; Boundary="b"',
        "multipart/form-data; boundary = b ; x",
        'multipart/form-data; boundary="\\b"',
    ],
)
def test_a_form_is_known_however_its_type_is_written(live, png, value):
    assert boundary(value) == b"b"
    body, _ = form(png, {"sigma": "0.01"})
    assert ask(live, "POST", "/restore", body, {"Content-TYPE": value}).status == 200


def test_the_header_names_of_a_part_know_no_case(live, png):
    body, headers = form(png, {"sigma": "0.01"})
    shouted = body.replace(b"Content-Disposition: form-data; name=", b"CONTENT-DISPOSITION: FORM-DATA; NAME=")
    assert ask(live, "POST", "/restore", shouted, headers).status == 200


@pytest.mark.parametrize("value", ["image/png", "", "multipart/mixed; boundary=b", "x-multipart/form-data", ";;;"])
def test_other_types_are_no_form(value):
    assert boundary(value) is None


@pytest.mark.parametrize("value", ["", "; boundary=", '; boundary=""', f"; boundary={'b' * 71}", "; boundary=\u00e9"])
def test_a_form_without_a_usable_boundary_is_refused(value):
    with pytest.raises(RequestError, match="boundary"):
        boundary(f"multipart/form-data{value}")


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        ([], False),
        (["*/*"], False),
        (["application/json"], True),
        (["Application/JSON; charset=utf-8"], True),
        (["application/json, text/plain, */*"], True),
        (["text/html", "application/json"], True),
        (["application/json;q=0"], False),
        (["application/json;Q=0.5, image/png"], False),
        (["application/json; q=0.8, image/*;q=0.2"], True),
        (["image/png, application/*;q=0.9"], False),
        (['text/x;a="application/json, b"'], False),
        (["application/json;q=2"], False),
        (["application/jsonp"], False),
    ],
)
def test_json_is_sent_to_who_prefers_it(accept, json):
    assert accepts_json(accept) is json


def test_parameters_are_unquoted_and_the_first_counts():
    assert parse('A/B; c="d\\"; e" ;C=x; F=g') == ("a/b", {"c": 'd"; e', "f": "g"})
