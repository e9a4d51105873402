// Writes docs/config.md and docs/metrics.md from the code, so that they cannot tell another story. `npm run docs`;
// test/tidy.test.ts fails when they are out of date.
import { writeFileSync } from 'node:fs';
import { configPage, metricsPage } from '../dist/ops/pages.js';

writeFileSync('docs/config.md', configPage());
writeFileSync('docs/metrics.md', metricsPage());
