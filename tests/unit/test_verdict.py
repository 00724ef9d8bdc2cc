"""Every error that librdkafka defines has one class, and each class the safe reaction at each call."""

from __future__ import annotations

import ctypes
import inspect
from pathlib import Path

import confluent_kafka
import pytest
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from connector.delivery.verdict import CLASSES, REACHABLE, UNREACHABLE, Call, Verdict, verdict

RETRY, ABORT, POISONED, UNKNOWN, FENCED, FATAL = Verdict
IN_TRANSACTION = [Call.DELIVERY, Call.FLUSH, Call.SEND_OFFSETS, Call.ABORT]


class _Description(ctypes.Structure):
    _fields_ = (("code", ctypes.c_int), ("name", ctypes.c_char_p), ("description", ctypes.c_char_p))


def of_librdkafka() -> set[str]:
    """Return the names that the library in the wheel defines."""
    wheel = Path(confluent_kafka.__file__).parent
    (path,) = wheel.parent.glob("confluent_kafka.libs/librdkafka-*")
    table, count = ctypes.POINTER(_Description)(), ctypes.c_size_t()
    ctypes.CDLL(str(path)).rd_kafka_get_err_descs(ctypes.byref(table), ctypes.byref(count))
    described = [table[i] for i in range(count.value)]
    return {one.name.decode() for one in described if one.name and one.description}  # no bounds of ranges


def of_the_client() -> set[str]:
    """Return the names that the Python client defines."""
    codes = [value for value in vars(KafkaError).values() if isinstance(value, int)]
    return {KafkaError(code).name() for code in codes}


def judge(name, during, **flags):
    return verdict(
        name, **{"is_fatal": False, "needs_abort": False, "is_retriable": False, **flags}, during=during
    )


@pytest.mark.parametrize("names", [of_librdkafka, of_the_client])
def test_every_error_has_a_class(names):
    """Red when an update of the client brings an error that nobody has thought about."""
    assert len(names()) > 180
    assert names() - CLASSES.keys() == set(), "say what these mean"


def test_no_class_is_of_an_error_that_does_not_exist():
    assert CLASSES.keys() - (of_librdkafka() | of_the_client()) == set()
    assert not REACHABLE.keys() & UNREACHABLE.keys()


def test_no_error_has_two_classes():
    words = Path(inspect.getfile(verdict)).read_text().partition("\nREACHABLE")[2].split()
    assert [name for name in CLASSES if words.count(name) > 1 and name != "UNKNOWN"] == []


# As found by injection: where, what librdkafka made of it, and its flags.
@pytest.mark.parametrize(
    ("name", "during", "flags", "expected"),
    [
        ("_FENCED", Call.INIT, {"is_fatal": True}, FENCED),
        ("_FENCED", Call.SEND_OFFSETS, {"is_fatal": True}, FENCED),
        ("_FENCED", Call.COMMIT, {"is_fatal": True}, FENCED),
        ("OUT_OF_ORDER_SEQUENCE_NUMBER", Call.SEND_OFFSETS, {"is_fatal": True}, UNKNOWN),
        ("OUT_OF_ORDER_SEQUENCE_NUMBER", Call.SEND_OFFSETS, {"needs_abort": True}, ABORT),
        ("INVALID_TXN_STATE", Call.SEND_OFFSETS, {"is_fatal": True}, UNKNOWN),
        ("INVALID_TXN_STATE", Call.SEND_OFFSETS, {"needs_abort": True}, UNKNOWN),
        ("INVALID_TXN_STATE", Call.COMMIT, {"is_fatal": True}, UNKNOWN),
        ("INVALID_TXN_STATE", Call.COMMIT, {"needs_abort": True}, UNKNOWN),
        ("INVALID_TRANSACTION_TIMEOUT", Call.INIT, {"is_fatal": True}, FATAL),
        ("TRANSACTIONAL_ID_AUTHORIZATION_FAILED", Call.INIT, {"is_fatal": True}, FATAL),
        ("CLUSTER_AUTHORIZATION_FAILED", Call.COMMIT, {"is_fatal": True}, FATAL),
        ("TOPIC_AUTHORIZATION_FAILED", Call.SEND_OFFSETS, {"needs_abort": True}, FATAL),
        ("GROUP_AUTHORIZATION_FAILED", Call.SEND_OFFSETS, {"needs_abort": True}, FATAL),
        ("UNKNOWN_PRODUCER_ID", Call.SEND_OFFSETS, {"needs_abort": True}, FENCED),
        ("INVALID_PRODUCER_ID_MAPPING", Call.COMMIT, {"needs_abort": True}, FENCED),
        ("ILLEGAL_GENERATION", Call.SEND_OFFSETS, {"needs_abort": True}, FENCED),
        ("UNKNOWN_MEMBER_ID", Call.SEND_OFFSETS, {"needs_abort": True}, FENCED),
        ("TRANSACTION_ABORTABLE", Call.SEND_OFFSETS, {"needs_abort": True}, ABORT),
        ("_TIMED_OUT", Call.INIT, {"is_retriable": True}, RETRY),
        ("_TIMED_OUT", Call.FLUSH, {}, ABORT),
        ("_TIMED_OUT", Call.SEND_OFFSETS, {"needs_abort": True}, ABORT),
        ("_TIMED_OUT", Call.COMMIT, {}, UNKNOWN),
        ("_TIMED_OUT", Call.COMMIT, {"needs_abort": True}, UNKNOWN),
        ("_TIMED_OUT", Call.ABORT, {"is_retriable": True}, ABORT),
        ("CONCURRENT_TRANSACTIONS", Call.INIT, {}, RETRY),
        ("_QUEUE_FULL", Call.PRODUCE, {}, RETRY),
        ("_STATE", Call.PRODUCE, {}, ABORT),
        ("_INCONSISTENT", Call.COMMIT, {"needs_abort": True}, UNKNOWN),
        ("_INVALID_DIFFERENT_RECORD", Call.DELIVERY, {}, POISONED),
        ("_CONFLICT", Call.ABORT, {"is_retriable": True}, UNKNOWN),
        ("_MAX_POLL_EXCEEDED", Call.DELIVERY, {}, FENCED),
        ("_PURGE_QUEUE", Call.DELIVERY, {}, ABORT),
        ("INVALID_TIMESTAMP", Call.DELIVERY, {}, FATAL),
    ],
)
def test_what_injection_found(name, during, flags, expected):
    assert judge(name, during, **flags) is expected


@pytest.mark.parametrize(
    "name", ["MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_RECORD", "POLICY_VIOLATION"]
)
@pytest.mark.parametrize("during", [Call.PRODUCE, *IN_TRANSACTION])
def test_a_poisoned_record_stays_one_whichever_call_tells(name, during):
    """librdkafka says it in the report, and says it again at every call until the transaction is aborted."""
    assert judge(name, during, needs_abort=during is not Call.DELIVERY) is POISONED


def test_only_what_a_record_is_poisons_it():
    """A dead letter for any other reason would take a status away that could have been written."""
    poisoned = {name for name, one in CLASSES.items() if one is POISONED}
    assert poisoned == {
        "MSG_SIZE_TOO_LARGE",
        "RECORD_LIST_TOO_LARGE",
        "INVALID_RECORD",
        "POLICY_VIOLATION",
        "_INVALID_DIFFERENT_RECORD",  # halving leads from this one to the other
    }


ERRORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(sorted(CLASSES)) | st.text(max_size=20),
        "is_fatal": st.booleans(),
        "needs_abort": st.booleans(),
        "is_retriable": st.booleans(),
    }
)


@given(ERRORS)
def test_a_failed_commit_is_never_taken_for_none(error):
    """Writing the batch again without asking the log could double it."""
    assert verdict(**error, during=Call.COMMIT) in {UNKNOWN, FENCED, FATAL}


@given(ERRORS)
def test_before_a_transaction_nothing_is_to_be_aborted(error):
    assert verdict(**error, during=Call.INIT) in {RETRY, FENCED, FATAL}


@given(ERRORS, st.sampled_from(IN_TRANSACTION))
def test_inside_a_transaction_nothing_is_sent_twice(error, during):
    assert verdict(**error, during=during) is not RETRY


@given(ERRORS, st.sampled_from(Call))
def test_a_producer_that_is_of_no_use_is_never_asked_to_abort(error, during):
    assert verdict(**{**error, "is_fatal": True}, during=during) is not ABORT


@given(ERRORS, st.sampled_from(Call))
def test_a_person_is_called_by_name_alone(error, during):
    """No flag makes an error a matter for a person, and none hides one that is."""
    known = CLASSES.get(error["name"])
    assert (verdict(**error, during=during) is FATAL) == (known is FATAL)
    assert (verdict(**error, during=during) is FENCED) == (known is FENCED)


@pytest.mark.parametrize("during", [Call.PRODUCE, *IN_TRANSACTION, Call.COMMIT])
@pytest.mark.parametrize("name", ["FROM_THE_FUTURE", "ERR_777?", "", "OFFSET_OUT_OF_RANGE"])
def test_what_nobody_knows_is_asked_of_the_log(name, during):
    assert judge(name, during) is UNKNOWN
    assert judge(name, during, is_fatal=True) is UNKNOWN


def test_what_nobody_knows_goes_by_its_flags():
    assert judge("FROM_THE_FUTURE", Call.SEND_OFFSETS, needs_abort=True) is ABORT
    assert judge("FROM_THE_FUTURE", Call.COMMIT, needs_abort=True) is UNKNOWN
    assert judge("FROM_THE_FUTURE", Call.INIT, is_retriable=True) is RETRY
    assert judge("FROM_THE_FUTURE", Call.COMMIT, is_retriable=True) is UNKNOWN
