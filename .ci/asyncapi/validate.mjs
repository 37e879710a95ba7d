// Validates an AsyncAPI document with AsyncAPI's own parser: node validate.mjs FILE. Warnings are errors, notes are shown.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const [file] = process.argv.slice(2);
const found = await new Parser().validate(readFileSync(file, "utf-8"));
const NAMES = ["error", "warning", "note", "hint"];
for (const { severity, code, message, path } of found) console.log(`${NAMES[severity]} ${code} ${path.join("/")}: ${message}`);
const wrong = found.filter(({ severity }) => severity < 2).length;
console.log(`${file}: ${wrong} wrong, ${found.length - wrong} notes`);
process.exit(wrong ? 1 : 0);
