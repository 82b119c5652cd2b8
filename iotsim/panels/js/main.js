// What a widget of ours is: the view of its kind.

import { dashboardView } from "./dashboard.js";
import { fleetView } from "./fleet.js";
import { resultView } from "./result.js";
import { gatewayView, labView } from "./gateway.js";
import { runView } from "./run.js";
import { scenarioView } from "./scenario.js";

const VIEWS = { run: runView, fleet: fleetView, scenario: scenarioView, result: resultView,
  dashboard: dashboardView, gateway: gatewayView, lab: labView };

export default {
  render(context) {
    return VIEWS[context.model.get("kind")](context);
  },
};
