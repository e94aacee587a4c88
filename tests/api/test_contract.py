"""The API against its own OpenAPI document: schemathesis sends what the document allows and what it forbids.

Every answer must be one that the document promises: its status, its type, its shape; what is forbidden is refused, and
nothing is done without a token.
"""

from __future__ import annotations

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from rig import TOKEN, publish
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from sandboxd.api import create_app
from sandboxd.catalogue import Catalogue
from sandboxd.config import Settings
from sandboxd.store import Store

ROUNDS = int(os.environ.get("CONTRACT_ROUNDS", "30"))
"""Examples for each operation."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_one_that_the_document_promises(
    settings: Settings, offering: Store, catalogue: Catalogue, mode: GenerationMode
) -> None:
    app = create_app(settings)
    described = schemathesis.openapi.from_wsgi("/v1/openapi.json", app)
    tried = 0
    for found in described.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
            continue  # nothing can be wrong with it

        @hypothesis(
            max_examples=ROUNDS, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def keeps_the_contract(case: schemathesis.Case) -> None:
            publish(offering, catalogue)  # what is offered expires, and no worker renews it here
            # A schema cannot say which languages, policies and ceilings there are: some of what it allows is refused.
            case.call_and_validate(
                headers={"Authorization": f"Bearer {TOKEN}"}, excluded_checks=[positive_data_acceptance]
            )

        keeps_the_contract()
        tried += 1
    assert tried >= (8 if mode is GenerationMode.POSITIVE else 2)
    app.extensions["sandboxd"].close()
