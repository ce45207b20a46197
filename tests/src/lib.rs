//! KeyDB's end-to-end tests lie in `tests/tests`; the comparison with Valkey in `tests/src/compare`.
