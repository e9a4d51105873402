/**
 * The truth of the read cache over a corpus: what each statement says through a proxy with a cache, again and again, beside what the database says;
 * in both protocols, text and binary, under settings that change answers. And the tables that the cache has found for it, beside those that Postgres itself
 * says it has touched (pg_locks).
 */
import t from 'tap';
import { shapeText } from '../../src/sql/shape.ts';
import { open, type RawClient, send } from '../fixtures/raw.ts';
import { connect, startProxy, until, withPostgres } from '../fixtures/stack.ts';

const postgres = await withPostgres();
t.after(() => postgres.stop());

const SCHEMA = `
  CREATE TYPE mood AS ENUM ('good', 'bad');
  CREATE DOMAIN positive AS int CHECK (VALUE > 0);
  CREATE TABLE items (id int PRIMARY KEY, name text, price numeric(10, 2), made timestamptz, day date, tags text[], doc jsonb,
    raw bytea, ratio float8, span interval, feeling mood, amount money, count positive);
  INSERT INTO items SELECT n, 'item ' || n, n * 1.5, timestamptz '2024-01-01 00:00+00' + n * interval '7 hours', date '2024-01-01' + n,
    ARRAY['t' || n % 3, 'x'], jsonb_build_object('n', n, 'even', n % 2 = 0), decode(lpad(to_hex(n), 4, '0'), 'hex'), n / 7.0,
    n * interval '1 day 2 hours', CASE WHEN n % 2 = 0 THEN 'good' ELSE 'bad' END::mood, n::money, n FROM generate_series(1, 40) n;
  CREATE TABLE orders (id int PRIMARY KEY, item int REFERENCES items, amount int);
  INSERT INTO orders SELECT n, n % 40 + 1, n % 11 FROM generate_series(1, 200) n;
  CREATE TABLE parts (id int, k text) PARTITION BY LIST (k);
  CREATE TABLE part_a PARTITION OF parts FOR VALUES IN ('a'); CREATE TABLE part_b PARTITION OF parts FOR VALUES IN ('b');
  INSERT INTO parts SELECT n, CASE WHEN n % 2 = 0 THEN 'a' ELSE 'b' END FROM generate_series(1, 20) n;
  CREATE TABLE animals (name text); CREATE TABLE dogs (breed text) INHERITS (animals);
  INSERT INTO animals VALUES ('cat'); INSERT INTO dogs VALUES ('rex', 'pug');
  CREATE VIEW cheap AS SELECT id, name, price FROM items WHERE price < 20;
  CREATE VIEW cheaper AS SELECT c.id, o.amount FROM cheap c JOIN orders o ON o.item = c.id;
  CREATE VIEW clock AS SELECT id, now() AS at FROM items;
  CREATE VIEW hidden AS SELECT id, secret() AS s FROM (SELECT 1 AS id) x;
  CREATE TABLE guarded (id int, owner text); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
  CREATE POLICY own ON guarded USING (owner = current_user); INSERT INTO guarded VALUES (1, 'postgres');
  CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM items;
  CREATE FUNCTION liar(int) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT count(*) FROM orders WHERE item = $1';
  CREATE SCHEMA other; CREATE TABLE other.items (id int, name text); INSERT INTO other.items VALUES (1, 'other');
  CREATE TABLE "Odd Name" ("Some Column" int); INSERT INTO "Odd Name" VALUES (5)`.replace(
  '  CREATE VIEW hidden AS SELECT id, secret() AS s FROM (SELECT 1 AS id) x;\n',
  '',
);

/** Expressions over items, each of which is asked for by itself. */
const expressions = `
  id; name; price; made; day; tags; doc; raw; ratio; span; feeling; amount; count; items; i.*; made::text; day::text; raw::text; ratio::text;
  span::text; amount::text; to_char(made, 'YYYY-MM-DD HH24:MI TZ'); to_char(price, 'L999G999D99'); date_trunc('day', made); date_part('hour', made);
  extract(dow FROM made); made AT TIME ZONE 'Asia/Tokyo'; made + interval '1 day'; made - timestamptz '2024-01-01 00:00'; age(made, timestamptz '2020-01-01 00:00+00');
  day + 1; day - date '2024-01-01'; tags[1]; tags || 'y'::text; array_length(tags, 1); array_to_string(tags, ','); unnest(tags); cardinality(tags);
  doc -> 'n'; doc ->> 'n'; doc @> '{"even": true}'; jsonb_pretty(doc); to_json(doc); row_to_json(i); to_jsonb(i); json_build_object('id', id, 'made', made);
  jsonb_build_array(id, name); concat(name, '-', id); concat_ws(',', name, made); format('%s is %s', name, made); upper(name); lower(name); initcap(name);
  length(name); substr(name, 2, 3); substring(name FROM 'i(.)em'); replace(name, 'item', 'x'); regexp_replace(name, '\\d', '#', 'g'); split_part(name, ' ', 2);
  lpad(name, 12, '.'); trim(name); position('m' IN name); md5(name); encode(raw, 'hex'); encode(raw, 'base64'); sha256(raw); quote_literal(name); quote_ident(name);
  quote_nullable(NULL); coalesce(NULL, name); nullif(id, 3); greatest(id, 5); least(id, 5); CASE WHEN id > 5 THEN 'big' ELSE 'small' END; id BETWEEN 3 AND 7;
  id IN (1, 2, 3); id = ANY (ARRAY[1, 2]); name LIKE 'item 1%'; name ILIKE 'ITEM 1%'; name ~ '1$'; name SIMILAR TO '%1'; id IS DISTINCT FROM 3; NOT (id > 3);
  id % 3; id ^ 2; |/ id::float8; abs(-id); round(price); round(price, 1); ceil(ratio); floor(ratio); trunc(price); sqrt(ratio); ln(ratio); power(ratio, 2); mod(id, 4);
  sign(-id); pi() * ratio; id & 6; id # 2; id << 1; ratio::real; ratio::numeric(8, 3); price::int; id::text; id::bigint; '1'::int + id; '{1,2}'::int[];
  row(id, name); (id, name) < (5, 'x'); daterange(day, day + 3); int4range(id, id + 5) @> 7; tsvector 'a b' @@ tsquery 'a'; to_tsvector('english', name);
  to_tsquery('english', 'item'); ts_rank(to_tsvector('english', name), to_tsquery('english', 'item')); inet '10.0.0.1' + id; host(inet '10.0.0.1');
  point(id, id) <-> point(0, 0); box(point(0, 0), point(id, id)); xmlexists('1' PASSING '<a/>'); bit_count(raw); get_byte(raw, 0); width_bucket(ratio, 0, 6, 3);
  make_date(2024, 1, 2); make_timestamptz(2024, 1, 2, 3, 4, 5); make_interval(days => id); justify_hours(span); to_date('2024-01-02', 'YYYY-MM-DD');
  to_timestamp(0); to_timestamp('2024', 'YYYY'); to_number('12', '99'); overlay(name PLACING 'x' FROM 2); reverse(name); translate(name, 'i', 'j'); ascii(name);
  chr(65 + id); repeat('ab', 3); starts_with(name, 'it'); string_to_array(name, ' '); array_position(tags, 'x'); array_remove(tags, 'x'); num_nulls(id, NULL);
  jsonb_path_query_first(doc, '$.n'); json_value(doc, '$.n'); json_query(doc, '$'); doc IS JSON; jsonb_array_length('[1,2]'); jsonb_typeof(doc -> 'n'); timezone('UTC', made);
  now(); clock_timestamp(); current_date; current_user; current_timestamp; localtime; random(); gen_random_uuid(); liar(id); pg_backend_pid(); current_setting('TimeZone'); version();
  age(made); txid_current_if_assigned(); ctid; xmin; tableoid; 'now'::timestamptz > made; date 'today' > day; 'good'::mood; feeling::text; 'items'::regclass;
  enum_first(feeling); inet_server_port(); has_table_privilege('items', 'select'); obj_description(1, 'pg_class'); pg_typeof(id); setseed(0.5); nextval('pg_catalog.x')
`
  .split(';')
  .map((each) => each.trim())
  .filter((each) => each !== '');

/** What follows FROM, and other forms. */
const others = [
  'SELECT * FROM items ORDER BY id',
  'SELECT * FROM items WHERE id = 3',
  'TABLE animals',
  'VALUES (1, 2), (3, 4)',
  'SELECT * FROM ONLY animals',
  'SELECT * FROM dogs',
  'SELECT * FROM parts ORDER BY id',
  'SELECT * FROM part_a ORDER BY id',
  'SELECT * FROM cheap ORDER BY id',
  'SELECT * FROM cheaper ORDER BY id, amount',
  'SELECT * FROM clock LIMIT 1',
  'SELECT * FROM guarded',
  'SELECT * FROM counted',
  'SELECT * FROM other.items',
  'SELECT * FROM "Odd Name"',
  'SELECT i.name, sum(o.amount) FROM items i JOIN orders o ON o.item = i.id GROUP BY i.name ORDER BY 1',
  'SELECT i.id, o.n FROM items i LEFT JOIN LATERAL (SELECT count(*) AS n FROM orders o WHERE o.item = i.id) o ON true ORDER BY 1',
  'SELECT * FROM items i NATURAL JOIN (SELECT 1 AS id) x',
  'SELECT count(*) FROM items WHERE id IN (SELECT item FROM orders WHERE amount > 5)',
  'SELECT EXISTS (SELECT FROM orders WHERE item = 3)',
  'SELECT ARRAY(SELECT id FROM orders WHERE item = 3 ORDER BY id)',
  'SELECT (SELECT max(amount) FROM orders) + id FROM items ORDER BY id LIMIT 3',
  'SELECT id FROM items ORDER BY id LIMIT (SELECT min(amount) + 3 FROM orders)',
  'SELECT id FROM items UNION SELECT id FROM orders ORDER BY 1 LIMIT 5',
  'SELECT id FROM items EXCEPT SELECT item FROM orders ORDER BY 1',
  '(SELECT id FROM items ORDER BY id LIMIT 1) UNION ALL (SELECT 99)',
  'WITH big AS (SELECT * FROM items WHERE price > 30) SELECT count(*) FROM big',
  'WITH items AS (SELECT 1 AS id) SELECT * FROM items',
  'WITH items AS (SELECT * FROM items WHERE id < 4) SELECT id FROM items ORDER BY id',
  'WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT n.i, o.amount FROM n JOIN orders o ON o.id = n.i ORDER BY 1',
  'SELECT day, count(*) FROM items GROUP BY ROLLUP (day) ORDER BY 1 LIMIT 4',
  'SELECT feeling, id % 2, count(*) FROM items GROUP BY GROUPING SETS ((feeling), (id % 2)) ORDER BY 1, 2',
  'SELECT id, rank() OVER (PARTITION BY feeling ORDER BY price) FROM items ORDER BY id',
  'SELECT id, sum(price) OVER w FROM items WINDOW w AS (ORDER BY id ROWS 2 PRECEDING) ORDER BY id',
  'SELECT count(*) FILTER (WHERE id > 5) FROM items',
  'SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY price) FROM items',
  "SELECT string_agg(name, ',' ORDER BY id) FROM items",
  'SELECT json_agg(i ORDER BY id) FROM items i WHERE id < 4',
  'SELECT jsonb_object_agg(id, made) FROM items WHERE id < 4',
  "SELECT json_agg(json_build_object('id', o.id, 'item', i.name) ORDER BY o.id) FROM orders o JOIN items i ON i.id = o.item WHERE o.id < 5",
  'SELECT DISTINCT ON (feeling) feeling, id FROM items ORDER BY feeling, id',
  'SELECT id FROM items ORDER BY name COLLATE "C" LIMIT 4',
  'SELECT id FROM items FETCH FIRST 2 ROWS WITH TIES',
  'SELECT * FROM generate_series(1, 3) g, items i WHERE i.id = g ORDER BY g',
  'SELECT * FROM ROWS FROM (generate_series(1, 2), unnest(ARRAY[3, 4])) WITH ORDINALITY, (SELECT 1 FROM items LIMIT 1) x',
  'SELECT j.* FROM items i, jsonb_to_record(i.doc) AS j(n int, even bool) ORDER BY 1 LIMIT 3',
  "SELECT t.* FROM items i, JSON_TABLE(i.doc, '$' COLUMNS (n int PATH '$.n')) t ORDER BY 1 LIMIT 3",
  'SELECT * FROM items WHERE id = 3 FOR UPDATE',
  'SELECT * FROM items TABLESAMPLE SYSTEM (100) LIMIT 0',
  "SELECT relname FROM pg_class WHERE relname = 'items'",
  'SELECT count(*) FROM information_schema.tables',
  'SELECT 1 FROM items WHERE false',
  'SELECT FROM items LIMIT 2',
  'SELECT 1/0 FROM items',
  'SELECT nothing FROM items',
  '/* a comment */ SELECT id -- and another\n FROM items WHERE id = 1',
  'SELECT id FROM items WHERE name = $$item 1$$',
  "SELECT id FROM items WHERE name = E'item\\x201'",
  "SELECT id FROM items WHERE name = U&'item\\00201'",
];

const statements = [
  ...expressions.map((expression) => `SELECT ${expression} FROM items i WHERE id < 6 ORDER BY id`),
  ...expressions.map((expression) => `SELECT count(*), min((${expression})::text) FROM items i WHERE id < 4`),
  ...expressions.map(
    (expression) => `SELECT id FROM items i WHERE (${expression})::text IS NOT NULL AND id < 5 ORDER BY id`,
  ),
  ...others,
];

const settings: string[][] = [
  [],
  [`SET TimeZone = 'Asia/Tokyo'`, `SET DateStyle = 'German'`, `SET IntervalStyle = 'iso_8601'`],
  [
    `SET bytea_output = 'escape'`,
    'SET extra_float_digits = 0',
    `SET lc_monetary = 'C'`,
    'SET search_path = other, public',
  ],
];

/** Not to be compared: it is another answer each time, whoever is asked. */
const volatile =
  /now\(\)|clock_|current_|localtime|random|uuid|pid\(\)|server_port|age\(made\)|txid|'now'|'today'|version|clock |setseed/;

t.test(`${statements.length} statements, ${settings.length} sessions, three ways to ask`, async (t) => {
  const admin = await connect(postgres.port);
  await admin.query(SCHEMA);
  const proxy = await startProxy(postgres.port, {
    database: { cache: 'all', control: { user: 'postgres' } },
    top: { cache: { mode: 'on', verify: '0%', sets: { all: [{ tables: ['*'], ttl: '1h', consistency: 'proxy' }] } } },
  });
  t.after(() => proxy.stop());
  const cache = () => proxy.app.snapshot().caches.of('postgres')!;
  const first = await open(t, proxy.port);
  await until(() => proxy.app.snapshot().caches.sensesOf('postgres')?.schema.relations != null, 'the catalogue');
  const extended = (sql: string, format: number) => [
    send.parse('', sql),
    send.bind('', '', [], [format]),
    send.describe('P', ''),
    send.execute(''),
    send.sync(),
  ];
  const ways: [string, (sql: string) => Buffer[]][] = [
    ['simple', (sql) => [send.query(sql)]],
    ['extended', (sql) => extended(sql, 0)],
    ['binary', (sql) => extended(sql, 1)],
  ];
  let asked = 0;
  let differing = 0;
  for (const session of settings) {
    const [client, server] = [await open(t, proxy.port), await open(t, postgres.port)];
    for (const sql of session) for (const each of [client, server]) await each.rows(sql);
    for (const sql of statements) {
      for (const [way, requestOf] of ways) {
        const request = requestOf(sql);
        const wanted = text(await server.ask(request));
        for (let lap = 0; lap < 3; lap++) {
          const found = text(await client.ask(request));
          asked++;
          if (found === wanted || volatile.test(sql)) continue;
          differing++;
          t.equal(found, wanted, `${sql} (${way}, ${session.join('; ')})`);
        }
      }
    }
  }
  t.equal(differing, 0, `${asked} answers`);
  t.ok(cache().counts.hits > 1_000, `${cache().counts.hits} of them from the cache`);
  t.equal(proxy.bugs(), 0);

  // What Postgres has locked to answer is what it has read, wherever that was hidden.
  let compared = 0;
  await admin.query('SET search_path = public');
  for (const sql of statements) {
    const shape = shapeText(sql);
    const record = [...cache().shapes].find((each) => each.text === shape && each.judgement.kind === 'kept');
    if (record?.judgement.kind !== 'kept') continue;
    const found = new Set(record.judgement.tables.map(({ oid }) => oid));
    await admin.query('BEGIN');
    await admin.query(sql).catch(() => {});
    const { rows } = await admin
      .query(
        `SELECT DISTINCT l.relation::int AS oid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
          WHERE l.pid = pg_backend_pid() AND l.mode = 'AccessShareLock' AND l.relation >= 16384 AND c.relkind IN ('r', 'p', 'v', 'm')`,
      )
      .catch(() => ({ rows: [] as { oid: number }[] }));
    await admin.query('ROLLBACK');
    const { relations } = cache();
    // A write to a partition or a child raises the versions of those that it is a part of.
    const missing = rows.filter(({ oid }) => !relations!.withAncestors(oid).some((each) => found.has(each)));
    compared++;
    t.same(missing, [], sql);
  }
  t.ok(compared > 100, `${compared} statements that are kept`);
  // What must never be kept.
  for (const sql of statements.filter((each) => volatile.test(each) || /liar|guarded|regclass|mood/.test(each))) {
    const shape = shapeText(sql);
    for (const { text: each, judgement, hits } of cache().shapes)
      if (each === shape && judgement.kind === 'kept' && !/'now'|'today'/.test(sql))
        t.equal(hits, 0, `${sql} was given again`);
  }
  await admin.end();
  first.socket.destroy();
});

/** An answer as it came, without what is allowed to differ: where an error was found in the source of Postgres stays. */
function text(messages: Awaited<ReturnType<RawClient['ask']>>): string {
  return messages.map(({ type, body }) => `${type}${body.toString('latin1')}`).join('\n');
}
