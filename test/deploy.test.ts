/** What is deployed beside pgweir: alert rules speak of metrics that there are, and of pages that there are; promtool judges them. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { parse } from 'yaml';
import { histograms, metrics } from '../src/ops/metrics.ts';
import { findProgram, skip } from './fixtures/drivers/programs.ts';

const root = join(import.meta.dirname, '..');
const read = (path: string) => readFileSync(join(root, path), 'utf8');

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
