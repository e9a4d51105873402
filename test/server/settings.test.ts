/** server/settings: equal settings are one object, and the SQL between two settings is as small as it is right. */
import t from 'tap';
import { reportedName, SettingsBook, settingsDiff } from '../../src/server/settings.ts';

const book = new SettingsBook();
const login = book.intern(
  new Map([
    ['TimeZone', 'UTC'],
    ['application_name', ''],
    ['is_superuser', 'on'],
  ]),
  new Map(),
);

t.test('equal settings are one object', async (t) => {
  const a = book.withStartup(login, [
    ['timezone', 'Asia/Tokyo'],
    ['work_mem', '1MB'],
  ]);
  const b = book.withStartup(login, [
    ['work_mem', '1MB'],
    ['TimeZone', 'Asia/Tokyo'],
  ]);
  t.equal(a, b);
  t.equal(a.reported.get('TimeZone'), 'Asia/Tokyo');
  t.equal(book.withReported(a, 'TimeZone', 'Asia/Tokyo'), a);
  t.equal(book.withCustom(a, [['work_mem', null]]), book.withReported(login, 'TimeZone', 'Asia/Tokyo'));
});

t.test('names are found whatever their case', async (t) => {
  t.equal(reportedName(login, 'timezone'), 'TimeZone');
  t.equal(reportedName(login, 'work_mem'), null);
});

t.test('nothing to do is nothing to say', async (t) => {
  t.equal(settingsDiff(login, login, login), null);
  t.equal(
    settingsDiff(book.withReported(login, 'is_superuser', 'off'), login, login),
    null,
    'what cannot be set is not set',
  );
});

t.test('what differs is set, and what only the server has is reset', async (t) => {
  const has = book.withCustom(book.withReported(login, 'TimeZone', 'GMT'), [['app.tenant', '1']]);
  const wants = book.withCustom(login, [['search_path', `a, "B'c\\d"`]]);
  t.equal(
    settingsDiff(has, wants, login)?.join('; '),
    `RESET "app"."tenant"; SELECT pg_catalog.set_config(E'search_path', E'a, "B''c\\\\d"', false), pg_catalog.set_config(E'TimeZone', E'UTC', false)`,
  );
});

t.test('a role is given up before anything else changes, and taken on again last', async (t) => {
  const has = book.withCustom(login, [
    ['role', 'weak'],
    ['a', '1'],
  ]);
  const wants = book.withCustom(login, [
    ['role', 'weak'],
    ['log_statement', 'all'],
  ]);
  t.equal(
    settingsDiff(has, wants, login)?.join('; '),
    `RESET "role"; RESET "a"; SELECT pg_catalog.set_config(E'log_statement', E'all', false), pg_catalog.set_config(E'role', E'weak', false)`,
  );
});
