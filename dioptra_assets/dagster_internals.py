"""Everything of Dagster's that Dagster calls its own: the one room that an upgrade of Dagster can break.

Each group says what it is for, and which public interface would replace it. Numbers are those of Dagster's own issues.
The tests hold each name to the pinned release; `make dagster-newest` holds them to the newest.
"""
# ruff: noqa: F401, I001 - others take the names from here, and they stand by what they are for

# A run of many cells reports each with its own data version and what it was made from (34013, 18649, 12498). A data
# version per partition in `dg.MaterializeResult` would replace these tags and the mark that nothing more is reported.
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_TAG,
    NULL_EVENT_POINTER,
    extract_data_version_from_entry,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

# A check's result about one partition names the materialization it is about: `dg.AssetCheckResult` has no partition.
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

# The stale status of many cells, asked for at once (14265). A public stale status of a set of partitions would replace
# these, and the look into how a mapping goes from one dimension to two.
from dagster._core.definitions.data_version import (
    DEFAULT_DATA_VERSION,
    NULL_DATA_VERSION,
    SKIP_PARTITION_DATA_VERSION_DEPENDENCY_THRESHOLD,
    CachingStaleStatusResolver,
    StaleStatus,
)
from dagster._core.definitions.partitions.mapping.multi.multi_to_single import (
    get_infer_single_to_multi_dimension_deps_result,
)
from dagster._core.loader import LoadingContext

# An asset graph looks dynamic partitions up in the instance of a context, and takes none as an argument.
from dagster._core.definitions.partitions.context import partition_loading_context

# A job that other processes load by the module of its code location; `dg.reconstructable` wants a function per job.
from dagster._core.definitions.reconstruct import ReconstructableRepository

# Where a run says it came from: the UI's timeline shows no run without it. `execute_in_process` that takes an origin
# would replace these.
from dagster._core.definitions.repository_definition.valid_definitions import SINGLETON_REPOSITORY_NAME
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin

# What a step writes goes to its log file alone, without the two processes per step that mirror it on the terminal. A
# setting of `LocalComputeLogManager` would replace these.
from dagster._core.execution.compute_logs import redirect_to_file
from dagster._core.storage import local_compute_log_manager
from dagster._utils import ensure_file

# An instance in a folder that `DAGSTER_HOME` does not name: `dg.DagsterInstance.get` takes no folder.
from dagster._core.instance.ref import InstanceRef

# A launcher that forks runs off a warm process: Dagster documents launchers, and exports none of their parts.
from dagster._core.launcher import RunLauncher
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData

# An executor that watches its Celery tasks: `dagster-celery` itself does not notice a worker that was killed. Dagster's
# own integrations build on these names, and it exports none of them.
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import (
    CheckStepHealthResult,
    StepDelegatingExecutor,
    StepHandler,
    StepHandlerContext,
)
from dagster._serdes import pack_value

# Databases of a home that stay open between two questions. A setting of Dagster's storages would replace these.
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME, SqliteEventLogStorage
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage

# Tags and statuses that Dagster's documentation gives as text or not at all.
from dagster._core.storage.dagster_run import FINISHED_STATUSES, NOT_FINISHED_STATUSES
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    HIDDEN_TAG_PREFIX,
    MAX_RETRIES_TAG,
    RETRY_NUMBER_TAG,
    ROOT_RUN_ID_TAG,
)

# Who may do what in the web server: permissions are a feature of Dagster's paid product.
from dagster._core.workspace.context import WorkspaceRequestContext

# Whether a text is a schedule, before Dagster answers with a stack trace.
from dagster._utils.schedules import is_valid_cron_schedule

# Started as `python -m`: by the interpreter of this environment, whatever the path says.
DAEMON = "dagster._daemon"
RUN_PROCESS = "dagster._cli.api"
