/**
 * What a machine can judge of the house: imports go down only, every key and metric is documented, generated pages are
 * up to date, nothing names a path of a machine or a registry.
 */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import t from 'tap';
import { parseConfig } from '../src/config/load.ts';
import { jsonSchema } from '../src/config/schema.ts';
import { histograms, metrics } from '../src/ops/metrics.ts';
import { configPage, metricsPage } from '../src/ops/pages.ts';

const root = join(import.meta.dirname ?? dirname(new URL(import.meta.url).pathname), '..');
const read = (path: string) => readFileSync(join(root, path), 'utf8');

/** Rooms from the top of the house to its cellar (DESIGN §4); a room may import from itself and from below. */
const floors: readonly (readonly string[])[] = [
  ['cli.ts'],
  ['app.ts', 'embedded.ts'],
  ['ops'],
  ['client'],
  ['guard', 'credits', 'cache', 'server', 'fleet'],
  ['sql'],
  ['protocol'],
  ['config'],
  ['util'],
];
const roomOf = (path: string) => path.split('/')[0]!;
const floorOf = (path: string) => floors.findIndex((rooms) => rooms.includes(roomOf(path)));

t.test('imports go down only, and nobody but app loads a configuration', async (t) => {
  const files = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' }).filter((file) =>
    file.endsWith('.ts'),
  );
  t.ok(files.length > 30);
  for (const file of files) {
    t.ok(floorOf(file) >= 0, `${file} stands in a room of the house`);
    for (const [, specifier] of read(join('src', file)).matchAll(/(?:from|import\()\s*'(\.[^']+)'/g)) {
      const target = relative(join(root, 'src'), join(root, 'src', dirname(file), specifier!));
      const isDown =
        floorOf(target) >= floorOf(file) && (roomOf(target) === roomOf(file) || floorOf(target) > floorOf(file));
      if (!isDown) t.fail(`${file} imports ${target}, which is not below it`);
      if (target === 'config/load.ts' && !['cli.ts', 'app.ts'].includes(file)) t.fail(`${file} loads a configuration`);
    }
  }
});

t.test('the data path knows no metrics, logger or HTTP', async (t) => {
  for (const room of ['client', 'guard', 'cache', 'server', 'sql', 'protocol', 'util']) {
    for (const file of readdirSync(join(root, 'src', room))) {
      if (/from '(prom-client|pino|node:http)'/.test(read(join('src', room, file)))) t.fail(`${room}/${file}`);
    }
  }
  t.pass();
});

t.test('every key has a description, and the pages and the schema are those of the code', async (t) => {
  const undocumented: string[] = [];
  const walk = (node: { properties?: object; description?: string; anyOf?: object[] }, path: string) => {
    if (path !== '' && node.description === undefined && !path.endsWith('*')) undocumented.push(path);
    for (const [name, child] of Object.entries(node.properties ?? {})) walk(child, `${path}.${name}`);
    const { additionalProperties } = node as { additionalProperties?: object };
    if (typeof additionalProperties === 'object') walk(additionalProperties, `${path}.*`);
  };
  walk(jsonSchema(), '');
  t.same(
    undocumented.filter((path) => path !== '.databases'),
    [],
  );
  t.equal(read('docs/config.md'), configPage(), 'run npm run docs');
  t.equal(read('docs/metrics.md'), metricsPage(), 'run npm run docs');
  t.same(JSON.parse(read('config.schema.json')), JSON.parse(JSON.stringify(jsonSchema())), 'run npm run docs');
});

t.test('metrics have names and help as Prometheus wants them', async (t) => {
  for (const { name, help, type } of metrics) {
    t.match(name, /^pgweir_[a-z_]+$/);
    t.equal(name.endsWith('_total'), type === 'counter', name);
    t.match(help, /^\w.*\.$/, name);
  }
  t.equal(new Set([...metrics, ...histograms].map(({ name }) => name)).size, metrics.length + histograms.length);
});

t.test('the example holds every key, and loads', async (t) => {
  const text = read('config.example.yaml');
  const loaded = parseConfig(text, 'config.example.yaml', {});
  t.same(loaded.ok ? [] : loaded.problems, []);
  const keys = [...configPage().matchAll(/^\| `([^`]+)` /gm)].map(([, key]) =>
    key!.split('.').at(-1)!.replace('[]', ''),
  );
  // Files are shown where they are used most; a TLS file is a path like any other.
  const shown = keys.filter((key) => !['*', 'cert', 'key', 'ca'].includes(key));
  for (const key of shown) t.match(text, new RegExp(`\\b${key}:`), key);
});

t.test('links in the documentation lead somewhere', async (t) => {
  for (const page of [
    'README.md',
    'CONTRIBUTING.md',
    'docs/architecture.md',
    'docs/credits.md',
    'docs/operations.md',
  ]) {
    for (const [, target] of read(page).matchAll(/\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)/g)) {
      t.doesNotThrow(() => readFileSync(join(root, dirname(page), target!)), `${page}: ${target}`);
    }
  }
});

t.test('nothing committed names a path of a machine or a package registry', async (t) => {
  const files = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard'], {
    cwd: root,
    encoding: 'utf8',
  });
  const registry = ['registry.npm', 'js.org'].join('');
  for (const file of files.split('\n').filter((name) => name !== '' && name !== 'test/tidy.test.ts')) {
    const found = /(?:^|[\s"'`(=:])(\/(?:work|farm|home|root)\/[\w.-]+)/m.exec(read(file));
    if (found !== null) t.fail(`${file}: ${found[1]}`);
    if (read(file).includes(registry)) t.fail(`${file} names a registry`);
  }
});
