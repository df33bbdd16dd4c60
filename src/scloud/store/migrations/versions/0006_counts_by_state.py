"""the index of states has what counts of them ask for"""

from alembic import op

revision = "0006"
down_revision = "0005"
INDEX = "ix_resource_state"


def upgrade() -> None:
    op.drop_index(INDEX, table_name="resource")
    op.create_index(INDEX, "resource", ["kind", "state", "gone"])


def downgrade() -> None:
    op.drop_index(INDEX, table_name="resource")
    op.create_index(INDEX, "resource", ["kind", "state"])
