// What a widget of ours is: the view of its kind.

import { dashboardView } from "./dashboard.js";
import { fleetView } from "./fleet.js";
import { resultView } from "./result.js";
import { gatewayView, labView } from "./gateway.js";
import { runView } from "./run.js";
import { scenarioView } from "./scenario.js";

const VIEWS = { run: runView, fleet: fleetView, scenario: scenarioView, result: resultView,
  dashboard: dashboardView, gateway: gatewayView, lab: labView };

// The notebook's keys are for its cells: typed in a panel, "d d" deletes none, and arrows choose.
function keyOfOurs(event) {
  const command = event.ctrlKey || event.metaKey || event.altKey || event.key === "Escape";
  if (!command) event.stopPropagation();
}

export default {
  render(context) {
    context.el.addEventListener("keydown", keyOfOurs);
    return VIEWS[context.model.get("kind")](context);
  },
};
