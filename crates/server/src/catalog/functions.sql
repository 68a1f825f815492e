-- What SQLite calls so, and our SQL with it. Each is one expression that says no more of itself than is true (`to_json` and `to_char` heed settings:
-- they are stable), and none is strict that is not so by itself: else PostgreSQL does not take the expression into the plan, and reads
-- and plans the function's text at each call. A restore's text takes thirty.

CREATE OR REPLACE FUNCTION json_quote(value text) RETURNS text LANGUAGE sql STABLE
    AS $$ SELECT coalesce(to_json(value)::text, 'null') $$;
CREATE OR REPLACE FUNCTION json_quote(value bigint) RETURNS text LANGUAGE sql IMMUTABLE
    AS $$ SELECT coalesce(value::text, 'null') $$;
-- Of the formats one is used.
CREATE OR REPLACE FUNCTION strftime(format text, seconds bigint, unit text) RETURNS text LANGUAGE sql STABLE
    AS $$ SELECT to_char(to_timestamp(seconds) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS') $$;
CREATE OR REPLACE FUNCTION printf(format text, number bigint) RETURNS text LANGUAGE sql IMMUTABLE
    AS $$ SELECT replace(format, '%03d', lpad(number::text, 3, '0')) $$;
CREATE OR REPLACE FUNCTION printf(format text, whole bigint, rest bigint) RETURNS text LANGUAGE sql IMMUTABLE
    AS $$ SELECT replace(replace(format, '%d', whole::text), '%02d', lpad(rest::text, 2, '0')) $$;
CREATE OR REPLACE FUNCTION max(a bigint, b bigint) RETURNS bigint LANGUAGE sql IMMUTABLE
    AS $$ SELECT CASE WHEN a >= b THEN a WHEN a < b THEN b END $$;
CREATE OR REPLACE FUNCTION min(a bigint, b bigint) RETURNS bigint LANGUAGE sql IMMUTABLE
    AS $$ SELECT CASE WHEN a <= b THEN a WHEN a > b THEN b END $$;
