"""secrets of storage clusters, and how full they were"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "secret",
        sa.Column("owner", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "name"),
    )
    op.create_table(
        "sample",
        sa.Column("owner", sa.String(length=32), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("used_mib", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "at"),
    )


def downgrade() -> None:
    op.drop_table("sample")
    op.drop_table("secret")
