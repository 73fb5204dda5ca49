"""The suites are no test modules, but their assertions should explain themselves as well."""

import pytest

pytest.register_assert_rewrite("array_suite")
