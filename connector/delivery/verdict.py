"""What a Kafka error means for the batch, and the one reaction to it. Pure: names and flags in, no client.

Errors come from librdkafka, whose own flags do not suffice: fenced and misconfigured are both *fatal*,
a record that is too large and a rebalance are both *abortable*, and at a commit neither flag says
whether it took place.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Verdict(Enum):
    """The classes of failure; each has exactly one reaction.

    Attributes:
        RETRY: it passes. Do the same again after a pause; a full queue is polled meanwhile, and after a
            failed initialisation the producer is a new one.
        ABORT: the transaction is spoiled, and nothing of it is in the log. Abort within a bounded time,
            make a new producer (its epoch refuses stragglers; it also ends a transaction whose abort
            failed), and form the batch anew.
        POISONED: one record is refused for what it is. As ABORT, but the same batch would be refused
            again: halve it until the record is found, which becomes a dead letter.
        UNKNOWN: the batch may be in the log or not. Make a new producer, which makes the outcome
            final, ask the log, and form the batch anew only if it is not there.
        FENCED: somebody else has the lease or the transactional id, or our own transaction timed out,
            which looks the same. Write nothing before there is a fresh proof of the lease; then as
            UNKNOWN, for what is still ours.
        FATAL: configuration or authorization. A person has to act: not ready, a clear message, and an
            exit with an error after a bounded time.
    """

    RETRY = "retry"
    ABORT = "abort"
    POISONED = "poisoned"
    UNKNOWN = "unknown"
    FENCED = "fenced"
    FATAL = "fatal"


class Call(Enum):
    """Where an error was met."""

    INIT = "init"  # making the producer, too: no transaction is open yet
    PRODUCE = "produce"  # only takes a record into the client's queue
    DELIVERY = "delivery"  # a record's delivery report
    FLUSH = "flush"
    SEND_OFFSETS = "send_offsets"
    COMMIT = "commit"
    ABORT = "abort"


def verdict(name: str, *, is_fatal: bool, needs_abort: bool, is_retriable: bool, during: Call) -> Verdict:
    """Return the class of an error.

    Args:
        name: as librdkafka spells it: ``MSG_SIZE_TOO_LARGE``; its own begin with ``_``.
        is_fatal: the producer is of no further use.
        needs_abort: librdkafka takes the transaction for failed.
        is_retriable: librdkafka would do the same again.
        during: the call that raised it. One that is raised again by later calls keeps its class.
    """
    found = CLASSES.get(name) or _by_flags(needs_abort=needs_abort, is_retriable=is_retriable)
    if found in {Verdict.FENCED, Verdict.FATAL}:
        return found
    match during:
        case Call.INIT:
            return Verdict.RETRY  # nothing is open that could be aborted or unknown
        case Call.COMMIT:
            # The request may have been sent, lost its answer and been sent again: what the last answer
            # says need not be true of the first. A refused record is told of before the commit.
            return Verdict.UNKNOWN
        case _ if is_fatal and found is not Verdict.POISONED:
            return Verdict.UNKNOWN  # nothing can be aborted any more, only ended by the next producer
        case Call.PRODUCE:
            return found
        case _ if found is Verdict.RETRY:
            # librdkafka has retried already. Another retry could arrive twice, and late: a new epoch
            # is safer, and costs less than waiting.
            return Verdict.ABORT
        case _:
            return found


def _by_flags(*, needs_abort: bool, is_retriable: bool) -> Verdict:
    """Return the class of an error that this module has never heard of: asking the log is always safe."""
    if needs_abort:
        return Verdict.ABORT
    return Verdict.RETRY if is_retriable else Verdict.UNKNOWN


def _classes(names: Mapping[Verdict, str]) -> dict[str, Verdict]:
    return {name: verdict for verdict, many in names.items() for name in many.split()}


REACHABLE: Mapping[str, Verdict] = _classes(
    {
        # Brokers that come, go or are busy; coordinators that move; the network.
        Verdict.RETRY: """
            _TIMED_OUT _TIMED_OUT_QUEUE _QUEUE_FULL _TRANSPORT _FAIL _RESOLVE _ALL_BROKERS_DOWN
            _DESTROY_BROKER _NODE_UPDATE _UNKNOWN_BROKER _WAIT_COORD _WAIT_CACHE _RETRY _INTR _ISR_INSUFF
            INVALID_MSG UNKNOWN_TOPIC_OR_PART LEADER_NOT_AVAILABLE NOT_LEADER_FOR_PARTITION REQUEST_TIMED_OUT
            BROKER_NOT_AVAILABLE REPLICA_NOT_AVAILABLE NETWORK_EXCEPTION
            COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE NOT_COORDINATOR
            NOT_ENOUGH_REPLICAS NOT_ENOUGH_REPLICAS_AFTER_APPEND KAFKA_STORAGE_ERROR
            CONCURRENT_TRANSACTIONS THROTTLING_QUOTA_EXCEEDED UNSTABLE_OFFSET_COMMIT
            FENCED_LEADER_EPOCH UNKNOWN_LEADER_EPOCH UNKNOWN_TOPIC_ID INCONSISTENT_TOPIC_ID
            REBOOTSTRAP_REQUIRED
        """,
        # _STATE: the transaction failed while records were still put in; the next call says why.
        # _INCONSISTENT: records were not delivered; their reports say why.
        Verdict.ABORT: """
            _STATE _INCONSISTENT _MSG_TIMED_OUT _PURGE_QUEUE _PURGE_INFLIGHT _GAPLESS_GUARANTEE
            OUT_OF_ORDER_SEQUENCE_NUMBER DUPLICATE_SEQUENCE_NUMBER TRANSACTION_ABORTABLE
            OPERATION_NOT_ATTEMPTED
        """,
        # _INVALID_DIFFERENT_RECORD: one sent together with this one.
        Verdict.POISONED: """
            MSG_SIZE_TOO_LARGE RECORD_LIST_TOO_LARGE INVALID_RECORD POLICY_VIOLATION
            _INVALID_DIFFERENT_RECORD
        """,
        # INVALID_TXN_STATE: a late commit of the last transaction may have committed part of this one.
        # _FATAL: says only that there was another error before. _CONFLICT: a call that timed out still runs.
        Verdict.UNKNOWN: """
            UNKNOWN INVALID_TXN_STATE
            _FATAL _DESTROY _OUTDATED _BAD_MSG _BAD_COMPRESSION _UNDERFLOW _PARTIAL _CONFLICT
            _IN_PROGRESS _PREV_IN_PROGRESS
        """,
        # A producer id that the broker has forgotten is another one's by now, or will be.
        Verdict.FENCED: """
            _FENCED _ASSIGNMENT_LOST _MAX_POLL_EXCEEDED
            INVALID_PRODUCER_EPOCH PRODUCER_FENCED INVALID_PRODUCER_ID_MAPPING UNKNOWN_PRODUCER_ID
            ILLEGAL_GENERATION UNKNOWN_MEMBER_ID FENCED_INSTANCE_ID REBALANCE_IN_PROGRESS
            FENCED_MEMBER_EPOCH STALE_MEMBER_EPOCH GROUP_ID_NOT_FOUND
        """,
        # INVALID_TIMESTAMP: the clock is wrong, not the record: all others would be refused as well.
        Verdict.FATAL: """
            _AUTHENTICATION _SSL _INVALID_ARG _UNSUPPORTED_FEATURE _NOT_IMPLEMENTED _NOT_CONFIGURED
            _INVALID_TYPE _CRIT_SYS_RESOURCE _FS _UNKNOWN_TOPIC _UNKNOWN_PARTITION _UNKNOWN_GROUP
            _UNKNOWN_PROTOCOL
            TOPIC_AUTHORIZATION_FAILED GROUP_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED
            TRANSACTIONAL_ID_AUTHORIZATION_FAILED SASL_AUTHENTICATION_FAILED UNSUPPORTED_SASL_MECHANISM
            ILLEGAL_SASL_STATE SECURITY_DISABLED PRINCIPAL_DESERIALIZATION_FAILURE
            INVALID_TRANSACTION_TIMEOUT INVALID_GROUP_ID OFFSET_METADATA_TOO_LARGE
            INVALID_COMMIT_OFFSET_SIZE TOPIC_EXCEPTION INVALID_REQUIRED_ACKS INVALID_TIMESTAMP
            INVALID_CONFIG INVALID_REQUEST UNSUPPORTED_VERSION UNSUPPORTED_FOR_MESSAGE_FORMAT
            UNSUPPORTED_COMPRESSION_TYPE MISMATCHED_ENDPOINT_TYPE UNSUPPORTED_ENDPOINT_TYPE
        """,
    }
)
"""What can reach a transactional producer."""

UNREACHABLE: Mapping[str, Verdict] = _classes(
    {
        Verdict.UNKNOWN: """
            NO_ERROR _PARTITION_EOF _EXISTING_SUBSCRIPTION _ASSIGN_PARTITIONS _REVOKE_PARTITIONS
            _NO_OFFSET _KEY_SERIALIZATION _VALUE_SERIALIZATION _KEY_DESERIALIZATION
            _VALUE_DESERIALIZATION _READ_ONLY _NOENT _APPLICATION
            _NOOP _AUTO_OFFSET_RESET _LOG_TRUNCATION OFFSET_OUT_OF_RANGE INVALID_MSG_SIZE
            STALE_CTRL_EPOCH INCONSISTENT_GROUP_PROTOCOL INVALID_SESSION_TIMEOUT TOPIC_ALREADY_EXISTS
            INVALID_PARTITIONS INVALID_REPLICATION_FACTOR INVALID_REPLICA_ASSIGNMENT NOT_CONTROLLER
            TRANSACTION_COORDINATOR_FENCED LOG_DIR_NOT_FOUND REASSIGNMENT_IN_PROGRESS
            DELEGATION_TOKEN_AUTH_DISABLED DELEGATION_TOKEN_NOT_FOUND DELEGATION_TOKEN_OWNER_MISMATCH
            DELEGATION_TOKEN_REQUEST_NOT_ALLOWED DELEGATION_TOKEN_AUTHORIZATION_FAILED
            DELEGATION_TOKEN_EXPIRED INVALID_PRINCIPAL_TYPE NON_EMPTY_GROUP FETCH_SESSION_ID_NOT_FOUND
            INVALID_FETCH_SESSION_EPOCH LISTENER_NOT_FOUND TOPIC_DELETION_DISABLED STALE_BROKER_EPOCH
            OFFSET_NOT_AVAILABLE MEMBER_ID_REQUIRED PREFERRED_LEADER_NOT_AVAILABLE GROUP_MAX_SIZE_REACHED
            ELIGIBLE_LEADERS_NOT_AVAILABLE ELECTION_NOT_NEEDED NO_REASSIGNMENT_IN_PROGRESS
            GROUP_SUBSCRIBED_TO_TOPIC RESOURCE_NOT_FOUND DUPLICATE_RESOURCE UNACCEPTABLE_CREDENTIAL
            INCONSISTENT_VOTER_SET INVALID_UPDATE_VERSION FEATURE_UPDATE_FAILED UNRELEASED_INSTANCE_ID
            UNSUPPORTED_ASSIGNOR UNKNOWN_CONTROLLER_ID UNKNOWN_SUBSCRIPTION_ID TELEMETRY_TOO_LARGE
            INVALID_REGISTRATION INVALID_RECORD_STATE SHARE_SESSION_NOT_FOUND INVALID_SHARE_SESSION_EPOCH
            FENCED_STATE_EPOCH INVALID_VOTER_KEY DUPLICATE_VOTER VOTER_NOT_FOUND
            INVALID_REGULAR_EXPRESSION STREAMS_INVALID_TOPOLOGY STREAMS_INVALID_TOPOLOGY_EPOCH
            STREAMS_TOPOLOGY_FENCED SHARE_SESSION_LIMIT_REACHED
        """,
    }
)
"""Answers to consumers, administrators and other brokers. Should one come all the same, the log is asked."""

CLASSES: Mapping[str, Verdict] = {**UNREACHABLE, **REACHABLE}
"""The class of every error that librdkafka defines, before the call is looked at."""
