"""Sessions, models, checkpoints and sampling sessions."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    time = sa.DateTime(timezone=True)
    op.create_table(
        "tinker_sessions",
        sa.Column("session_id", sa.String(255), primary_key=True),
        sa.Column("user_name", sa.String(255), nullable=False),
        sa.Column("created", time, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("user_metadata", sa.JSON, nullable=False),
        sa.Column("sdk_version", sa.String(255), nullable=False),
        sa.Column("display_name", sa.Text),
        sa.Column("last_heartbeat", time, nullable=False),
        sa.Column("finished", time),
        sa.Column("finish_reason", sa.String(255)),
        sa.Column("finish_detail", sa.Text),
    )
    op.create_index("ix_tinker_sessions_user_created", "tinker_sessions", ["user_name", "created"])
    op.create_table(
        "tinker_models",
        sa.Column("model_id", sa.String(255), primary_key=True),
        sa.Column("session_id", sa.String(255), nullable=False),
        sa.Column("user_name", sa.String(255), nullable=False),
        sa.Column("base_model", sa.Text, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("user_metadata", sa.JSON, nullable=False),
        sa.Column("created", time, nullable=False),
        sa.Column("last_request", time, nullable=False),
        sa.Column("trainable", sa.Boolean, nullable=False),
    )
    op.create_index("ix_tinker_models_session_id", "tinker_models", ["session_id"])
    op.create_index("ix_tinker_models_user_created", "tinker_models", ["user_name", "created"])
    op.create_table(
        "tinker_checkpoints",
        sa.Column("path", sa.String(512), primary_key=True),
        sa.Column("model_id", sa.String(255), nullable=False),
        sa.Column("user_name", sa.String(255), nullable=False),
        sa.Column("base_model", sa.Text, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("created", time, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("expires_at", time),
        sa.Column("removed", sa.Boolean, nullable=False),
        sa.Column("user_metadata", sa.JSON, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("unembed", sa.Boolean, nullable=False),
        sa.Column("request_id", sa.String(255)),
    )
    op.create_index("ix_tinker_checkpoints_model_id", "tinker_checkpoints", ["model_id"])
    op.create_index(
        "ix_tinker_checkpoints_user_created", "tinker_checkpoints", ["user_name", "created"]
    )
    op.create_index("ix_tinker_checkpoints_expires_at", "tinker_checkpoints", ["expires_at"])
    op.create_index("ix_tinker_checkpoints_request_id", "tinker_checkpoints", ["request_id"])
    op.create_table(
        "tinker_sampling_sessions",
        sa.Column("sampling_session_id", sa.String(255), primary_key=True),
        sa.Column("session_id", sa.String(255), nullable=False),
        sa.Column("user_name", sa.String(255), nullable=False),
        sa.Column("base_model", sa.Text, nullable=False),
        sa.Column("checkpoint", sa.String(512)),
        sa.Column("follows", sa.String(255)),
        sa.Column("created", time, nullable=False),
    )
    op.create_index(
        "ix_tinker_sampling_sessions_session_id", "tinker_sampling_sessions", ["session_id"]
    )
