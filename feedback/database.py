"""Opening the store's database: engine settings per dialect, migrations under a lock, and what its errors mean to callers."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Executable, create_engine, event, exc, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import QueuePool

from attune.errors import ConfigError, InvalidRecord, Unavailable
from feedback.sqlite import write_ahead

MIGRATIONS = Path(__file__).with_name("migrations")
HEAD = "0002"
"""The newest revision in `migrations/versions`, so that a store that is up to date opens without loading Alembic."""
MIGRATION_LOCK = 0x6174_7475  # any constant number that nobody else locks
DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def open_engine(url: str, *, read_only: bool = False) -> Engine:
    """Return an engine for the URL, without connecting; raises `ConfigError` if it is no URL of a database that we know."""
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed, read_only)
    options = "-c statement_timeout=60000 -c lock_timeout=30000" + (" -c default_transaction_read_only=on" if read_only else "")
    silent = {"tcp_user_timeout": 10_000, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}  # not a quarter of an hour
    arguments: dict[str, Any] = {"connect_timeout": 5, "options": options} | silent
    return create_engine(parsed, pool_pre_ping=True, pool_size=3, pool_timeout=10, connect_args=arguments)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state of the database; raises `Unavailable` if it is away."""
    with translated(), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that is committed at the end; raises `Unavailable` (perhaps committed) or `InvalidRecord` (not committed)."""
    with translated(), engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


@contextmanager
def translated() -> Iterator[None]:
    """Turn the database's errors into ours: a value it will not take is `InvalidRecord`, everything else `Unavailable`."""
    try:
        yield
    except (exc.DataError, OverflowError, UnicodeError) as error:  # the latter two: sqlite3 refuses them before SQLAlchemy knows
        raise InvalidRecord(f"the database refuses a value: {_first_line(error)}") from error
    except (exc.SQLAlchemyError, OSError) as error:
        raise Unavailable(f"the store cannot be used: {_first_line(error)}") from error


def fetch(db: Connection, query: Executable) -> list[dict[str, Any]]:
    """Return the rows of a query, column name -> value."""
    result = db.execute(query)
    names = list(result.keys())
    return [dict(zip(names, row, strict=True)) for row in result]


def migrate(engine: Engine) -> None:
    """Bring the schema to this program's state; programs that start together wait for each other. Raises `Unavailable`, `ConfigError`."""
    with reading(engine) as connection:
        if _revision(connection) == HEAD:
            return
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        current = _revision(connection)
        if current != HEAD:
            _upgrade(connection, current)


def _revision(connection: Connection) -> str | None:
    """Return the revision of the schema; None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: Connection, current: str | None) -> None:
    import alembic.command  # slow to load, and hardly ever needed
    import alembic.config
    from alembic.script import ScriptDirectory

    settings = alembic.config.Config()
    settings.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    settings.set_main_option("path_separator", "os")
    if current not in {None, *(revision.revision for revision in ScriptDirectory.from_config(settings).walk_revisions())}:
        raise ConfigError(f"the store was made by a newer version of Attune (schema {current}): upgrade this program")
    settings.attributes["connection"] = connection
    alembic.command.upgrade(settings, "head")


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except exc.ArgumentError as error:
        raise ConfigError(
            "store.url: not a database URL, such as sqlite:////var/lib/attune/store.sqlite or postgresql://host/name"
        ) from error
    driver = DRIVERS.get(parsed.get_backend_name())
    if driver is None or (driver == "sqlite" and parsed.database in (None, "", ":memory:")):
        raise ConfigError(f"store.url: {parsed.get_backend_name()!r} will not do; name a SQLite file or a PostgreSQL database")
    return parsed.set(drivername=driver)


def _sqlite_engine(url: URL, read_only: bool) -> Engine:
    path, timeout_s = Path(str(url.database)), float(str(url.query.get("timeout", "15")))
    if not read_only:
        with translated():
            path.parent.mkdir(parents=True, exist_ok=True)

    def connect() -> sqlite3.Connection:
        # A path with ? or # in it would end the URI early, hence as_uri's quoting.
        mode = "ro" if read_only else "rwc"
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False
        )

    engine = create_engine("sqlite://", creator=connect, pool_size=3, pool_timeout=10, poolclass=QueuePool)

    @event.listens_for(engine, "connect")
    def _settings(connection: sqlite3.Connection, _: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        if not read_only:
            write_ahead(connection, timeout_s)
            # FULL: positions that a reader has seen must not be given out anew after a power failure.
            connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that begins by reading and then writes cannot wait for its turn: writers take the lock at once.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

    return engine


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]
