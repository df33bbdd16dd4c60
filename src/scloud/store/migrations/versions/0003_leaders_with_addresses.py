"""the leader's row says where it is reached"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("lease") as table:
        table.alter_column("holder", existing_type=sa.String(length=64), type_=sa.Text(), existing_nullable=False)
        table.alter_column("name", existing_type=sa.String(length=32), type_=sa.String(length=64))


def downgrade() -> None:
    with op.batch_alter_table("lease") as table:
        table.alter_column("holder", existing_type=sa.Text(), type_=sa.String(length=64), existing_nullable=False)
        table.alter_column("name", existing_type=sa.String(length=64), type_=sa.String(length=32))
