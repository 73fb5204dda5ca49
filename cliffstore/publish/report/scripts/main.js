// Where the page begins.

import { drawExamples } from "./examples.js";
import { drawSelections } from "./selections.js";
import { watchCharts } from "./tip.js";
import { watchExample } from "./example.js";
import { watchSections } from "./sections.js";
import { watchTheme } from "./theme.js";

watchTheme();
drawExamples();
drawSelections();
watchExample();
watchCharts();
watchSections();
