"""What S3 servers in the wild do differently, and which tests hold that it does no harm: a table that cannot go stale.

``elsewhere`` tests run on Swift, moto and rclone, which have some of these quirks themselves; the others on the local
endpoint, which is told to have them, or on clients that answer as such servers do.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

#: The fault matrix, which has a row for it.
MATRIX = ("dcp/test_fault_matrix.py::test_load", "dcp/test_fault_matrix.py::test_save_over_an_old_checkpoint")

QUIRKS: dict[str, tuple[str, ...]] = {
    # Reading
    "a ranged GET is answered with 200 and just the range": (
        "s3/test_bulk.py::test_answers_that_are_right",
        *MATRIX,
    ),
    "a ranged GET is answered with 200 and the whole object": (*MATRIX,),
    "a ranged GET has the whole object's checksum": (*MATRIX,),
    "a ranged GET has no checksum": ("s3/test_bulk.py::test_answers_that_are_right",),
    "If-Match on GET is ignored": (
        "engine/test_download.py::test_an_object_replaced_meanwhile",
        "engine/test_hedging.py::test_an_object_that_is_replaced_before_its_hedge",
    ),
    # Writing
    "aws-chunked bodies and trailers are refused, or stored as data": (
        "s3/test_bulk.py::test_bodies_do_not_come_in_chunks",
        *MATRIX,
    ),
    "a wrong checksum header is accepted": (*MATRIX,),
    "If-None-Match is ignored on PUT, or on completions": (
        "dcp/test_commit.py::test_a_store_without_conditional_writes_still_commits",
        "dcp/test_two_writers.py::test_a_store_that_ignores_conditions_shows_what_was_mixed",
        "engine/test_engine.py::test_elsewhere",
    ),
    "conditions are refused": (
        "engine/test_standing.py::test_a_store_that_refuses_conditions_is_asked_once",
        "dcp/test_commit.py::test_a_store_that_refuses_conditional_writes_is_written_without",
    ),
    # Completions
    "a second Complete is answered with 200 or 404": (
        "engine/test_standing.py::test_an_object_that_a_lost_answer_was_about",
        "engine/test_upload.py::test_faults_are_outlived",
    ),
    "the ETag of a Complete is empty": ("engine/test_upload.py::test_faults_are_outlived",),
    "an error is inside a 200": (
        "s3/test_control.py::test_an_error_in_an_answer_of_200",
        *MATRIX,
    ),
    "a Complete that does not name each part is refused": (
        "engine/test_hedged_parts.py::test_a_save_does_not_wait_for_one_slow_part",
        "engine/test_upload.py::test_any_size",
    ),
    "a part sent again has another ETag": (
        "engine/test_multipart.py::test_a_part_that_is_stored_again_after_it_was_reported",
        "engine/test_hedged_parts.py::test_a_loser_that_is_stored_under_another_etag",
    ),
    # Aborts and listings
    "after an abort ListParts is answered with 404": (
        "engine/test_engine.py::test_the_parts_of_an_upload_page_by_page",
    ),
    "after an abort ListParts is answered with 500": (
        "dcp/test_sweep.py::test_an_upload_of_which_the_service_knows_nothing_any_more",
    ),
    "an abort is answered with 404": ("engine/test_engine.py::test_the_parts_of_an_upload_page_by_page",),
    "MaxUploads is ignored": ("engine/test_engine.py::test_listings_of_uploads_whose_pages_are_the_stores_choice",),
    "IsTruncated is missing": (
        "engine/test_engine.py::test_listings_of_uploads_whose_pages_are_the_stores_choice",
        "engine/test_engine.py::test_a_listing_of_parts_that_does_not_say_whether_it_is_truncated",
    ),
    "a listing does not move on": (
        "engine/test_engine.py::test_a_listing_of_parts_that_does_not_move_on_ends",
        "engine/test_engine.py::test_a_listing_of_uploads_that_does_not_move_on_ends",
    ),
    "a listing shows a subset of the parts": ("engine/test_multipart.py::test_stored_parts_that_are_not_listed",),
    # Names
    "ETags are plain, md5-N, weak, or missing": (
        "wire/test_s3.py::test_etags",
        "engine/test_engine.py::test_large_objects_elsewhere",
        *MATRIX,
    ),
    "keys of metadata change their case": ("engine/test_engine.py::test_metadata_of_mixed_case_elsewhere",),
    "keys with //, .. or 900 characters fail": ("engine/test_engine.py::test_odd_keys_elsewhere",),
    "there is no DNS for virtual hosts": ("s3/test_address.py::test_an_endpoint_from_a_profile_gets_path_style",),
    # Connections
    "each answer closes its connection": (
        "engine/test_upload.py::test_faults_are_outlived",
        *MATRIX,
    ),
    "idle connections are closed": (
        "transport/test_pool.py::test_connections_that_the_server_closed_in_between_are_replaced_in_silence",
    ),
}


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((TESTS / path).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("quirk", QUIRKS)
def test_each_quirk_is_held(quirk: str) -> None:
    for where in QUIRKS[quirk]:
        path, name = where.split("::")
        assert name in names_in(path)
