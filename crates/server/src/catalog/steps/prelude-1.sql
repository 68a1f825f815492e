-- What SQLite calls so, and our SQL with it.

CREATE FUNCTION json_quote(value text) RETURNS text LANGUAGE sql IMMUTABLE
    AS $$ SELECT coalesce(to_json(value)::text, 'null') $$;
CREATE FUNCTION json_quote(value bigint) RETURNS text LANGUAGE sql IMMUTABLE
    AS $$ SELECT coalesce(value::text, 'null') $$;
-- Of the formats one is used.
CREATE FUNCTION strftime(format text, seconds bigint, unit text) RETURNS text LANGUAGE sql IMMUTABLE
    AS $$ SELECT to_char(to_timestamp(seconds) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS') $$;
CREATE FUNCTION printf(format text, number bigint) RETURNS text LANGUAGE sql IMMUTABLE STRICT
    AS $$ SELECT replace(format, '%03d', lpad(number::text, 3, '0')) $$;
CREATE FUNCTION printf(format text, whole bigint, rest bigint) RETURNS text LANGUAGE sql IMMUTABLE STRICT
    AS $$ SELECT replace(replace(format, '%d', whole::text), '%02d', lpad(rest::text, 2, '0')) $$;
CREATE FUNCTION max(a bigint, b bigint) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT
    AS $$ SELECT greatest(a, b) $$;
CREATE FUNCTION min(a bigint, b bigint) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT
    AS $$ SELECT least(a, b) $$;

-- One row: which form the tables have.
CREATE TABLE catalogue (
    version BIGINT NOT NULL,                -- as SQLite's user_version
    form TEXT COLLATE "C" NOT NULL          -- digest of the schema's text
);
