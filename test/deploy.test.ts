/** What is deployed beside pgweir: alert rules speak of metrics that there are, and of pages that there are; promtool judges them. */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { parse, parseAllDocuments } from 'yaml';
import { loadConfig, parseConfig } from '../src/config/load.ts';
import { histograms, metrics } from '../src/ops/metrics.ts';
import { findProgram, skip } from './fixtures/drivers/programs.ts';
import { until } from './fixtures/stack.ts';

const root = join(import.meta.dirname, '..');
const read = (path: string) => readFileSync(join(root, path), 'utf8');

/** As much of Kubernetes' manifests as is looked at. */
interface Manifest {
  kind: string;
  data?: Record<string, string>;
  spec: {
    replicas: number;
    minAvailable: number;
    template: {
      spec: {
        terminationGracePeriodSeconds: number;
        securityContext: { runAsNonRoot: boolean; runAsUser: number; fsGroup: number };
        volumes: { secret?: { defaultMode: number } }[];
        containers: {
          ports: { containerPort: number }[];
          livenessProbe: object;
          readinessProbe: object;
          securityContext: object;
        }[];
      };
    };
  };
}

interface Rule {
  alert: string;
  expr: string;
  labels: { severity: string };
  annotations: { summary: string; runbook: string };
}
const { groups } = parse(read('deploy/alerts.yml')) as { groups: { rules: Rule[] }[] };
const rules = groups.flatMap((group) => group.rules);

t.test('rules are about metrics that there are', async (t) => {
  const names = new Set([...metrics, ...histograms].map(({ name }) => name));
  for (const { alert, expr } of rules) {
    const used = expr.match(/pgweir_\w+/g) ?? [];
    t.ok(used.length > 0 || expr.startsWith('up{'), alert);
    for (const name of used) t.ok(names.has(name.replace(/_(bucket|sum|count)$/, '')), `${alert}: ${name}`);
  }
});

t.test('each has a severity and a section of the runbook', async (t) => {
  const headings = new Set([...read('docs/operations.md').matchAll(/^### (\w+)$/gm)].map(([, name]) => name));
  for (const { alert, labels, annotations } of rules) {
    t.match(labels.severity, /^(ticket|page|emergency)$/, alert);
    t.equal(annotations.runbook, `docs/operations.md#${alert.toLowerCase()}`);
    t.ok(headings.has(alert), `${alert} is in docs/operations.md`);
  }
  t.equal(headings.size, rules.length, 'and nothing else is');
  const tested = read('deploy/alerts.test.yml');
  for (const { alert } of rules) t.match(tested, `alertname: ${alert}`, `${alert} is tested`);
});

t.test('promtool finds nothing wrong, and they fire when they should', async (t) => {
  const promtool = findProgram('promtool');
  if (promtool === null) return skip(t, 'promtool', 'prometheus');
  for (const args of [
    ['check', 'rules', 'deploy/alerts.yml'],
    ['test', 'rules', 'deploy/alerts.test.yml'],
  ]) {
    const { status, stdout, stderr } = spawnSync(promtool, args, { cwd: root, encoding: 'utf8' });
    t.equal(status, 0, `${args.join(' ')}: ${stdout} ${stderr}`);
  }
});

// --- What cannot be run here is read ------------------------------------------------------------------------------------

t.test('the image has what it needs, and its commands are there', async (t) => {
  const lines = read('Dockerfile').split('\n');
  const copied = lines.flatMap((line) => /^COPY (?!--from)(.+) \S+$/.exec(line)?.[1]?.split(' ') ?? []);
  for (const path of copied) t.ok(existsSync(join(root, path)), `${path} is there to be copied`);
  const { files } = JSON.parse(read('package.json')) as { files: string[] };
  for (const path of files.filter((each) => !each.endsWith('.json') && !each.endsWith('.yaml')))
    t.ok(
      lines.some((line) => line.startsWith('COPY') && line.includes(path)),
      `${path} of the package is in the image`,
    );
  const last = (word: string) => lines.filter((line) => line.startsWith(word)).at(-1)!;
  t.match(last('USER'), 'node');
  t.match(last('STOPSIGNAL'), 'SIGTERM');
  for (const word of ['ENTRYPOINT', 'CMD']) t.ok(Array.isArray(JSON.parse(last(word).slice(word.length))), 'exec form');
  t.match(last('HEALTHCHECK'), /"status", "--quiet"/);
  const stages = lines.filter((line) => line.startsWith('FROM'));
  for (const stage of stages) t.match(stage, 'node:24-');
});

t.test('Kubernetes: probes that do not ask the database, a drain that may end, and no rights', async (t) => {
  const all = parseAllDocuments(read('deploy/kubernetes.yml')).map((each) => each.toJS() as Manifest);
  const of = (kind: string) => all.find((each) => each.kind === kind)!;
  const loaded = parseConfig(of('ConfigMap').data!['pgweir.yaml']!, 'kubernetes', {});
  t.ok(loaded.ok, loaded.ok ? '' : loaded.problems.join());
  if (!loaded.ok) return;
  const { config } = loaded;
  const { replicas, template } = of('Deployment').spec;
  const [container] = template.spec.containers;
  t.equal(config.instances, replicas);
  t.ok(template.spec.terminationGracePeriodSeconds * 1000 > config.drain.delay + config.drain.timeout);
  t.match(container!.livenessProbe, { httpGet: { path: '/livez' } });
  t.match(container!.readinessProbe, { httpGet: { path: '/readyz' } });
  t.match(
    container!.ports.map(({ containerPort }) => containerPort),
    [config.listen.port, config.ops.port],
  );
  t.match(container!.securityContext, { readOnlyRootFilesystem: true, allowPrivilegeEscalation: false });
  const { runAsNonRoot, runAsUser, fsGroup } = template.spec.securityContext;
  t.equal(runAsNonRoot, true);
  t.equal(fsGroup, runAsUser, 'files of a secret are root’s, and of this group');
  t.equal(config.ops.tokenFile, '/run/secrets/pgweir/token', 'who reads it brings a token');
  t.ok(of('PodDisruptionBudget').spec.minAvailable < replicas, 'a node may be emptied');
});

t.test('what the pages show of a configuration loads', async (t) => {
  for (const page of ['README.md', ...readdirSync(join(root, 'docs')).map((name) => `docs/${name}`)]) {
    if (!page.endsWith('.md')) continue;
    for (const [, block] of read(page).matchAll(/^```yaml\n(.*?)^```/gms)) {
      // What a page is not about is left out there.
      const missing = { auth: { method: 'trust' }, databases: { '*': { hosts: ['db:5432'] } } };
      const loaded = parseConfig(JSON.stringify({ ...missing, ...(parse(block!) as object) }), page, {});
      t.same(loaded.ok ? [] : loaded.problems, [], `${page}: ${block!.slice(0, 60)}`);
    }
  }
});

t.test('compose: its files are there, and its configurations load', async (t) => {
  const folder = join(root, 'deploy/compose');
  const { services } = parse(read('deploy/compose/compose.yml')) as {
    services: Record<string, { volumes?: string[]; image?: string }>;
  };
  for (const { volumes = [], image = 'x:1' } of Object.values(services)) {
    t.match(image, /:\d|:v\d/, 'a version, not whatever is newest');
    for (const volume of volumes) t.ok(existsSync(join(folder, volume.split(':')[0]!)), volume);
  }
  const loaded = loadConfig(join(folder, 'pgweir.yaml'), {});
  t.ok(loaded.ok, loaded.ok ? '' : loaded.problems.join());
  const promtool = findProgram('promtool');
  if (promtool === null) return skip(t, 'promtool', 'prometheus');
  const scratch = mkdtempSync(join(tmpdir(), 'pgweir-compose-'));
  t.after(() => rmSync(scratch, { recursive: true }));
  const config = join(scratch, 'prometheus.yml');
  writeFileSync(config, read('deploy/compose/prometheus.yml').replace('/etc/prometheus', join(root, 'deploy')));
  const { status, stdout, stderr } = spawnSync(promtool, ['check', 'config', config], { encoding: 'utf8' });
  t.equal(status, 0, `${stdout}${stderr}`);
});

t.test('systemd: the unit is one, and it is told when pgweir serves', async (t) => {
  const unit = read('deploy/pgweir.service');
  for (const line of ['Type=notify', 'NotifyAccess=all', 'DynamicUser=yes', 'StateDirectory=pgweir'])
    t.match(unit, line);
  const folder = mkdtempSync(join(tmpdir(), 'pgweir-unit-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const analyze = findProgram('systemd-analyze');
  if (analyze === null) skip(t, 'systemd-analyze', 'systemd');
  else {
    // What it starts is not installed here.
    writeFileSync(join(folder, 'pgweir.service'), unit.replaceAll('/usr/bin/pgweir', process.execPath));
    const { status, stderr } = spawnSync(analyze, ['verify', join(folder, 'pgweir.service')], { encoding: 'utf8' });
    t.equal(status, 0, stderr);
    t.notMatch(stderr, 'pgweir.service', stderr);
  }
  // A stand-in for systemd-notify that writes down what it is asked to say.
  const told = join(folder, 'told');
  writeFileSync(join(folder, 'systemd-notify'), `#!/bin/sh\necho "$@" > ${told}\n`, { mode: 0o755 });
  const config = join(folder, 'pgweir.yaml');
  writeFileSync(
    config,
    JSON.stringify({
      listen: { port: 0 },
      ops: { port: 0 },
      auth: { method: 'trust' },
      databases: { '*': { hosts: ['127.0.0.1:1'] } },
    }),
  );
  const child = spawn(process.execPath, ['dist/cli.js', 'serve', '-c', config], {
    cwd: root,
    stdio: 'ignore',
    env: { PATH: `${folder}:/usr/bin:/bin`, NOTIFY_SOCKET: join(folder, 'socket') },
  });
  t.after(() => {
    child.kill('SIGKILL');
  });
  await until(() => existsSync(told) && readFileSync(told, 'utf8') !== '', 'systemd to be told');
  t.equal(readFileSync(told, 'utf8').trim(), `--ready --pid=${child.pid}`);
});

t.test('the package installs and runs from its tarball', { timeout: 200_000 }, async (t) => {
  if (process.env.CI !== 'true') return console.error('SKIPPED: npm pack is installed into a clean prefix by CI only');
  const folder = mkdtempSync(join(tmpdir(), 'pgweir-pack-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const npm = (...args: string[]) => spawnSync('npm', args, { cwd: root, encoding: 'utf8' });
  const packed = npm('pack', '--ignore-scripts', '--pack-destination', folder);
  t.equal(packed.status, 0, packed.stderr);
  const tarball = join(folder, packed.stdout.trim().split('\n').at(-1)!);
  const installed = npm('install', '--global', '--prefix', folder, '--omit=dev', '--no-fund', '--no-audit', tarball);
  t.equal(installed.status, 0, installed.stderr);
  const pgweir = (...args: string[]) => spawnSync(join(folder, 'bin/pgweir'), args, { encoding: 'utf8' });
  t.match(pgweir('--version').stdout, /^\d+\.\d+\.\d+/);
  t.match(pgweir('completion', 'bash').stdout, 'complete -F _pgweir pgweir');
  const example = join(folder, 'lib/node_modules/pgweir');
  t.ok(existsSync(join(example, 'src/ops/dashboard/index.html')), 'with the dashboard');
  t.equal(pgweir('check', join(example, 'config.example.yaml')).status, 0);
});
