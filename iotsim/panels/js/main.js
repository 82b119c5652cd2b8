// What a widget of ours is: the view of its kind.

import { dashboardView } from "./dashboard.js";
import { fleetView } from "./fleet.js";
import { runView } from "./run.js";

const VIEWS = { run: runView, fleet: fleetView, dashboard: dashboardView };

export default {
  render(context) {
    return VIEWS[context.model.get("kind")](context);
  },
};
