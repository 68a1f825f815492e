-- One row: which form the tables have.
CREATE TABLE catalogue (
    version BIGINT NOT NULL,                -- as SQLite's user_version
    form TEXT COLLATE "C" NOT NULL          -- digest of the schema's text
);
