"""Alembic runs this for every upgrade, inside the transaction that `database.py` has begun."""

from alembic import context

from enginehouse.tinker.records.tables import VERSION_TABLE, Table


def migrate() -> None:
    """Run the steps that are missing."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=Table.metadata,
        version_table=VERSION_TABLE,
    )
    with context.begin_transaction():
        context.run_migrations()


if hasattr(context, "config"):  # Alembic is running it, and not only importing it
    migrate()
